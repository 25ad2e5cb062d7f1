"""Keras 3 on its torch backend: models and layers in both directions, against what Keras computes."""

import os

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.conversion import from_keras, to_keras
from bnkit.core import ConversionError, InputError
from tests.tolerances import relative_error

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, at import

keras = pytest.importorskip("keras", reason="Keras 3 is in the dependency group `test`")
if keras.backend.backend() != "torch":
    pytest.skip("another test imported Keras with another backend", allow_module_level=True)

LIMIT = 1e-6


def keras_net(**norm):
    layers = keras.layers
    inputs = layers.Input((9, 7, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="valid", use_bias=False)(inputs)
    x = layers.BatchNormalization(**norm)(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(2, use_bias=False)(x)
    x = layers.BatchNormalization(scale=False, **norm)(x)
    x = layers.Conv2DTranspose(6, 2, strides=2)(x)
    x = layers.BatchNormalization(epsilon=1e-2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(6)(x)
    x = layers.BatchNormalization(center=False)(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    randomize(model)
    return model


def randomize(model):
    draw = np.random.default_rng(3)
    for v in model.weights:
        value = draw.normal(size=v.shape)
        v.assign(np.exp(value) if "variance" in v.name or "gamma" in v.name else value)


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 2, groups=6, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 6, 2, 2)
        self.bn3 = nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(6 * 6 * 4, 6)
        self.bn4 = nn.BatchNorm1d(6)
        self.fc2 = nn.Linear(6, 2)

    def forward(self, x):
        x = self.bn2(self.deep(torch.relu(self.bn1(self.conv1(x)))))
        x = self.bn3(self.up(x)).flatten(1)
        return self.fc2(self.bn4(self.fc1(x)))


def array(x):
    return x.detach().numpy()


def images(seed=5):
    return np.random.default_rng(seed).normal(size=(4, 9, 7, 3)).astype(np.float32)


def outputs(keras_model, torch_model, x):
    with torch.no_grad():
        theirs = array(keras_model(x, training=False))
        ours = torch_model.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    return theirs, ours


FLATTEN = {"fc1": (6, 4)}


def test_a_keras_model_becomes_a_torch_model():
    source, target = keras_net(), TorchNet()
    plan = bnkit.convert(source, target, flatten=FLATTEN)
    before = [p.clone() for p in target.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))
    plan.apply()
    theirs, ours = outputs(source, target, images())
    assert relative_error(ours, theirs) < LIMIT
    assert not plan.missing
    assert not plan.unused
    assert target.bn4.bias.abs().max() == 0  # Keras has none


def test_and_a_torch_model_a_keras_model():
    source, target = TorchNet(), keras_net()
    with torch.no_grad():
        for name, tensor in source.state_dict().items():
            if tensor.is_floating_point():
                value = torch.randn(
                    tensor.shape, generator=torch.Generator().manual_seed(len(name))
                )
                tensor.copy_(value.exp() if "var" in name else value)
        source.bn2.weight.fill_(1)  # the target has no scale there, and no shift in the last one
        source.bn4.bias.zero_()
        source.bn2.eps = 1e-3
    bnkit.convert(source, target, flatten=FLATTEN).apply()
    theirs, ours = outputs(target, source, images())
    assert relative_error(theirs, ours) < LIMIT


def test_what_the_target_has_no_place_for_is_refused():
    source, target = TorchNet(), keras_net()
    with torch.no_grad():
        source.bn2.weight.fill_(2)
        source.bn2.running_var.fill_(1)
    with pytest.raises(ConversionError, match=r"'bn2' -> .*expected a target with a weight"):
        bnkit.convert(source, target, flatten=FLATTEN)


def test_the_flattened_map_is_noticed():
    with pytest.raises(ConversionError, match="144 inputs behind a convolution of 6 channels"):
        bnkit.convert(keras_net(), TorchNet())
    with pytest.raises(ConversionError, match="product divides its 144 inputs"):
        bnkit.convert(keras_net(), TorchNet(), flatten={"fc1": (5, 5)})
    with pytest.raises(InputError, match="expected names of dense layers, got 'fc9'"):
        bnkit.convert(keras_net(), TorchNet(), flatten={"fc9": (5, 5)})


@pytest.mark.parametrize("arguments", [{}, {"center": False}, {"scale": False}, {"axis": 1}])
@pytest.mark.parametrize("renorm", [False, True])
def test_a_layer_trains_on_as_in_keras(arguments, renorm):
    more = {"renorm": True, "renorm_clipping": {"rmax": 1.5, "dmax": 0.5}} if renorm else {}
    layer = keras.layers.BatchNormalization(momentum=0.7, epsilon=1e-2, **arguments, **more)
    layer.build((None, 5, 5, 4) if "axis" not in arguments else (None, 4, 5, 5))
    randomize(layer)
    if renorm:
        layer.moving_stddev.assign(np.sqrt(np.asarray(layer.moving_variance.value.detach()) + 1e-2))
        layer.renorm_stddev.assign(np.ones(4))
    ours = from_keras(layer)
    shape = (6, 4, 5, 5) if "axis" in arguments else (6, 5, 5, 4)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 2 + 1
    with torch.no_grad():
        theirs = [array(layer(x, training=mode)) for mode in (False, True, False)]
        mine = [ours.train(mode)(torch.from_numpy(x)).numpy() for mode in (False, True, False)]
    for left, right in zip(mine, theirs, strict=True):
        assert relative_error(left, right) < 5 * LIMIT


@pytest.mark.parametrize("make", [nn.BatchNorm2d, bnkit.nn.BatchNorm2d])
def test_a_torch_layer_becomes_a_keras_layer(make):
    source = make(5, eps=1e-4, momentum=0.3)
    with torch.no_grad():
        source(torch.randn(8, 5, 3, 3) * 3 + 1)
        source.weight.uniform_(0.5, 2)
        source.bias.normal_()
    target = to_keras(source)
    x = torch.randn(4, 5, 3, 3)
    with torch.no_grad():
        want = source.eval()(x).permute(0, 2, 3, 1).numpy()
        got = array(target(x.permute(0, 2, 3, 1), training=False))
    assert relative_error(got, want) < LIMIT
    assert target.get_config()["momentum"] == 0.7
    again = from_keras(target)
    assert torch.equal(again.running_var, source.running_var)


def test_refusals_name_what_was_expected():
    with pytest.raises(InputError, match="got Linear"):
        to_keras(nn.Linear(2, 2))
    with pytest.raises(ConversionError, match="momentum=None"):
        to_keras(nn.BatchNorm1d(2, momentum=None))
    with pytest.raises(ConversionError, match="recalibrate it first"):
        to_keras(nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(InputError, match="not built"):
        from_keras(keras.layers.BatchNormalization())
    with pytest.raises(InputError, match="expected a built Keras model"):
        bnkit.convert(keras.Sequential([keras.layers.Dense(3)]), nn.Linear(2, 3))

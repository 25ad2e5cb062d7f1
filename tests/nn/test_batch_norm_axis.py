"""`BatchNorm`: every argument of `tf.layers.batch_normalization`, honoured or refused."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F

import bnkit
from bnkit.core import SpecError
from tests.tolerances import FLOAT64

BatchNorm = bnkit.nn.BatchNorm
# the list of the tutorial that names them, in its order
TENSORFLOW = {
    "axis": -1,
    "momentum": 0.99,
    "epsilon": 0.001,
    "center": True,
    "scale": True,
    "beta_initializer": "zeros",
    "gamma_initializer": "ones",
    "moving_mean_initializer": "zeros",
    "moving_variance_initializer": "ones",
    "beta_regularizer": None,
    "gamma_regularizer": None,
    "beta_constraint": None,
    "gamma_constraint": None,
    "trainable": True,
    "name": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
    "fused": None,
    "virtual_batch_size": None,
    "adjustment": None,
}
REFUSED = {"inputs": None, "training": False, "reuse": None}


def close(a, b, tolerance=FLOAT64):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def values(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 2 + 3


def test_every_argument_of_tensorflow_is_taken_and_the_defaults_are_its_own():
    default, spelled = BatchNorm.from_tf(3), BatchNorm.from_tf(3, **TENSORFLOW)
    assert repr(default) == repr(spelled)
    a, b = vars(default), vars(spelled)
    for key in a:
        if not key.startswith("_") and not isinstance(a[key], torch.Tensor):
            assert a[key] == b[key], key
    assert (default.eps, default.axis) == (1e-3, (-1,))
    assert default.momentum == pytest.approx(0.01)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name):
    reason = {"inputs": "layer(x)", "training": "layer.train()", "reuse": "calling it again"}
    for make in (BatchNorm, BatchNorm.from_tf):
        with pytest.raises(SpecError, match=name) as error:
            make(3, **{name: REFUSED[name]})
        assert reason[name] in str(error.value)


def test_names_of_tensorflow_are_answered_with_ours():
    ours = set(inspect.signature(BatchNorm).parameters)
    for name in set(TENSORFLOW) - ours - {"fused"}:
        with pytest.raises(SpecError, match=f"{name}=.* here it is called") as error:
            BatchNorm(3, **{name: 1})
        called = str(error.value).split("is called ")[1].split(";")[0]
        assert called in ours
    with pytest.raises(SpecError, match="fused=True is not taken: kernels are chosen"):
        BatchNorm(3, fused=True)
    with pytest.raises(SpecError, match="momentun=1 is not taken: there is no such argument"):
        BatchNorm(3, momentun=1)
    with pytest.raises(SpecError, match="eps=1 is not taken: there is no such argument"):
        BatchNorm.from_tf(3, eps=1)


@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        (1, (6, 3)),
        (-1, (6, 3)),
        (-1, (4, 5, 3)),
        (1, (4, 3, 5, 2)),
        (2, (4, 5, 3, 2)),
        (-1, (4, 5, 2, 3)),
        (0, (3, 5, 4)),
        ((1, 3), (4, 3, 5, 2)),
        ((3, 1), (4, 2, 5, 3)),
        ((0, 2), (3, 4, 2)),
        ((1, 2, 3), (6, 3, 2, 4)),
        (-1, (2, 2, 2, 2, 2, 3)),
    ],
)
@pytest.mark.parametrize("contiguous", [True, False])
def test_axes(axis, shape, contiguous):
    axes = (axis,) if isinstance(axis, int) else axis
    features = tuple(shape[a] for a in axes)
    layer = BatchNorm(features if len(axes) > 1 else features[0], axis, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5), layer.bias.uniform_(-1, 1)
    x = values(*shape)
    if not contiguous:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    x.requires_grad_()
    y = layer(x)
    assert y.is_contiguous() or not contiguous

    channels = [a % x.ndim for a in axes]
    others = [a for a in range(x.ndim) if a not in channels]
    order = sorted(range(len(channels)), key=channels.__getitem__)
    kept = [x.shape[a] if a in channels else 1 for a in range(x.ndim)]
    weight, bias = (p.permute(order).reshape(kept) for p in (layer.weight, layer.bias))
    var, mean = torch.var_mean(x, others, correction=0, keepdim=True)
    expected = (x - mean) / torch.sqrt(var + layer.eps) * weight + bias
    close(y, expected, 1e-9)
    inputs = [x, layer.weight, layer.bias]
    cotangent = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        close(a, b, 1e-9)
    back = [channels.index(c) for c in sorted(channels)]
    n = x.numel() / mean.numel()
    stored = (0.1 * mean).reshape([x.shape[c] for c in sorted(channels)])
    close(layer.running_mean.permute(back), stored.detach())
    stored = (0.9 + 0.1 * var * n / (n - 1)).reshape(stored.shape)
    close(layer.running_var.permute(back), stored.detach())


def test_it_is_batch_norm_2d_by_default():
    layer, twin = BatchNorm(3), bnkit.nn.BatchNorm2d(3)
    for _ in range(2):
        x = torch.randn(4, 3, 5, 6)
        close(layer(x), twin(x), 0)
    assert list(layer.state_dict()) == list(twin.state_dict())
    for a, b in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        close(a, b, 0)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_center_and_scale_apart(center, scale):
    layer = BatchNorm(3, center=center, scale=scale, weight_initializer=2.0, bias_initializer=0.5)
    assert (layer.weight is not None) is scale
    assert (layer.bias is not None) is center
    x = torch.randn(8, 3)
    expected = F.batch_norm(x, None, None, training=True) * (2 if scale else 1)
    close(layer(x), expected + (0.5 if center else 0), 1e-5)


def test_initializers():
    layer = BatchNorm(
        4,
        weight_initializer=lambda w: torch.nn.init.constant_(w, 0.25),
        bias_initializer="ones",
        running_mean_initializer=3,
        running_var_initializer=lambda v: v.fill_(4.0),
        renorm=True,
    )
    for _ in range(2):
        assert (layer.weight == 0.25).all()
        assert (layer.bias == 1).all()
        assert (layer.running_mean == 3).all()
        assert (layer.running_var == 4).all()
        assert (layer.renorm_stddev == 2).all()  # as TensorFlow: the root of the first variance
        layer(torch.randn(6, 4))
        layer.reset_parameters()


def test_regularizers():
    layer = BatchNorm(3, weight_regularizer=lambda w: w.square().sum(), bias_regularizer=torch.sum)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), layer, BatchNorm(3))
    with torch.no_grad():
        layer.weight.fill_(2), layer.bias.fill_(0.5)
    loss = bnkit.nn.regularization_loss(model)
    assert loss.item() == 3 * 4 + 3 * 0.5
    loss.backward()
    assert layer.weight.grad.tolist() == [4, 4, 4]
    assert bnkit.nn.regularization_loss(BatchNorm(3, scale=False)).item() == 0


def test_constraints():
    unit = lambda w: w / w.norm().clamp(min=1)  # noqa: E731
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), BatchNorm(4, weight_constraint=unit))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    handle = bnkit.nn.constrain_after(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).pow(3).sum().backward()
        optimizer.step()
        assert model[1].weight.norm() <= 1 + 1e-6
    handle.remove()
    for _ in range(5):
        optimizer.zero_grad()
        (-model[1].weight.sum()).backward()
        optimizer.step()
    assert model[1].weight.norm() > 1
    bnkit.nn.constrain_(model)
    assert model[1].weight.norm() <= 1 + 1e-6


@pytest.mark.parametrize("way", ["running", "batch"])
def test_trainable(way):
    layer = BatchNorm(3, frozen_normalizes_with=way)
    x = torch.randn(8, 3) * 3 + 2
    layer(x)
    layer.trainable = False
    assert not any(p.requires_grad for p in layer.parameters())
    before = copy.deepcopy(layer.state_dict())
    y = layer.train()(x)
    expected = copy.deepcopy(layer).eval()(x) if way == "running" else BatchNorm(3)(x)
    close(y, expected, 1e-5)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    layer.trainable = True
    close(layer(x), BatchNorm(3)(x), 1e-5)
    assert all(p.requires_grad for p in layer.parameters())
    assert int(layer.num_batches_tracked) == 2


def test_adjustment():
    seen = []
    s, t = torch.rand(6, 1, dtype=torch.float64, requires_grad=True), 0.5

    def adjustment(shape):
        seen.append(shape)
        return s, t

    layer = BatchNorm(3, adjustment=adjustment, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.uniform_(), layer.bias.uniform_()
    x = values(6, 3)
    expected = (F.batch_norm(x, None, None, training=True) * s + t) * layer.weight + layer.bias
    y = layer(x)
    close(y, expected, 1e-9)
    assert seen == [(6, 3)]
    close(torch.autograd.grad(y.pow(2).sum(), s)[0], torch.autograd.grad(expected.pow(2).sum(), s)[0],
          1e-9)  # fmt: skip
    layer.eval()(x)
    assert len(seen) == 1  # training only


@pytest.mark.parametrize("correction", [1, 0.5])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("size", [None, 4, 5])
def test_correction_of_the_variance(correction, scale, size):
    layer = BatchNorm(
        3,
        correction=correction,
        scale=scale,
        virtual_batch_size=size,
        ghost_remainder="smaller",
        dtype=torch.float64,
    )
    x = values(8, 3)
    y = layer(x)
    groups = 1 if size is None else -(-8 // size)
    for g in range(groups):
        part = x[g::groups]
        var = part.var(0, correction=correction)
        expected = (part - part.mean(0)) / torch.sqrt(var + layer.eps)
        close(y[g::groups], expected, 1e-9)


@pytest.mark.parametrize("stored", [0, 1, "fused"])
@pytest.mark.parametrize(("shape", "axis", "fused"), [
    ((6, 3), 1, False), ((4, 3, 5), 1, False), ((4, 3, 5, 5), 1, True), ((4, 5, 5, 3), -1, True),
    ((4, 5, 3, 5), 2, False), ((2, 3, 2, 2, 2), 1, True),
])  # fmt: skip
def test_which_variance_is_stored(stored, shape, axis, fused):
    layer = BatchNorm(3, axis, momentum=1.0, running_correction=stored)
    x = torch.randn(shape)
    layer(x)
    bessel = fused if stored == "fused" else bool(stored)
    others = [a for a in range(x.ndim) if a != axis % x.ndim]
    close(layer.running_var, x.var(others, correction=int(bessel)), 1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_fused_of_tensorflow_is_the_stored_variance(fused):
    layer = BatchNorm.from_tf(3, fused=fused, momentum=0.0)
    x = torch.randn(6, 3)
    layer(x)
    close(layer.running_var, x.var(0, correction=int(fused)), 1e-6)
    for other in ({"renorm": True}, {"virtual_batch_size": 2}, {"axis": [1, 2]}):
        features = (3, 2) if "axis" in other else 3
        if fused:
            with pytest.raises(SpecError, match="no fused kernel"):
                BatchNorm.from_tf(features, fused=True, **other)
        else:
            BatchNorm.from_tf(features, fused=False, **other)

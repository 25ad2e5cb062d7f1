"""Batch renormalization, ghost batches, adjustment and the functions of TensorFlow 2."""

import os

import numpy as np
import pytest
import torch

import bnkit
from bnkit.functional import batch_normalization, moments
from tests.frameworks.step import make_batch
from tests.tolerances import FRAMEWORK, relative_error

pytestmark = pytest.mark.frameworks
WHY = "`make test-frameworks` installs TensorFlow and Keras 2"
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # without it tf.compat.v1.layers is empty
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow", reason=WHY)
tf_keras = pytest.importorskip("tf_keras", reason=WHY)

CLIP = {"rmin": 0.7, "rmax": 1.3, "dmax": 0.4}
STATISTICS = {
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "moving_stddev": "running_stddev",
    "renorm_mean": "renorm_mean",
    "renorm_stddev": "renorm_stddev",
}


def tilt(shape):
    """Different in every sample, so that an error in the grouping shows."""
    rows = np.arange(shape[0], dtype="float32").reshape(-1, *(1,) * (len(shape) - 1))
    return 1 + 0.1 * rows, 0.2 * rows - 1


# name -> shape of the input, arguments of the layer
LAYERS = {
    "2d": ((16, 5), {}),
    "3d": ((8, 7, 5), {}),
    "4d": ((4, 6, 5, 3), {}),
    "4d unfused": ((4, 6, 5, 3), {"fused": False}),
    "4d axis 1": ((4, 3, 6, 5), {"axis": 1}),
    "5d": ((2, 3, 4, 5, 3), {}),
    "two axes": ((6, 3, 4, 2), {"axis": [1, 3]}),
    "two axes, first": ((6, 3, 4, 2), {"axis": [0, 2]}),
    "no center": ((4, 6, 5, 3), {"center": False}),
    "no scale": ((16, 5), {"scale": False}),
    "neither": ((16, 5), {"scale": False, "center": False}),
    "renorm": ((4, 6, 5, 3), {"renorm": True, "renorm_momentum": 0.6}),
    "renorm clipped": ((16, 5), {"renorm": True, "renorm_clipping": CLIP}),
    "renorm with rmax alone": ((16, 5), {"renorm": True, "renorm_clipping": {"rmax": 1.1}}),
    "renorm with rmin alone": ((16, 5), {"renorm": True, "renorm_clipping": {"rmin": 1.5}}),
    "renorm with dmax alone": ((16, 5), {"renorm": True, "renorm_clipping": {"dmax": 0.2}}),
    "renorm, no scale": ((16, 5), {"renorm": True, "scale": False}),
    "renorm, no center": ((16, 5), {"renorm": True, "center": False}),
    "renorm, two axes": ((6, 3, 4, 2), {"renorm": True, "axis": [1, 3]}),
    "ghost": ((12, 5), {"virtual_batch_size": 3}),
    "ghost 4d": ((6, 4, 5, 3), {"virtual_batch_size": 2}),
    "ghost axis 1": ((6, 3, 4, 5), {"virtual_batch_size": 3, "axis": 1}),
    "ghost, one group": ((6, 5), {"virtual_batch_size": 6}),
    "ghost renorm": ((12, 5), {"virtual_batch_size": 3, "renorm": True, "renorm_clipping": CLIP}),
    "adjustment": ((8, 5), {"adjustment": lambda _: tilt((8, 5))}),
    "adjustment 4d": ((4, 6, 5, 3), {"adjustment": lambda _: tilt((4, 1, 1, 1))}),
    "adjustment renorm": ((8, 5), {"adjustment": lambda _: tilt((8, 5)), "renorm": True}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


class Pair:
    """The layer of TensorFlow and ours, with the same values."""

    def __init__(self, name, **changes):
        shape, arguments = LAYERS[name]
        arguments = {"momentum": 0.8, **arguments, **changes}
        axis = arguments.get("axis", -1)
        self.batch = make_batch(
            shape,
            axis if isinstance(axis, int) else tuple(axis),
            scale=arguments.get("scale", True),
            center=arguments.get("center", True),
        )
        features = self.batch.mean.shape
        self.theirs = tf_keras.layers.BatchNormalization(**arguments)
        self.theirs.build(shape)
        ours = {k: _torch_adjustment(v) if k == "adjustment" else v for k, v in arguments.items()}
        self.ours = bnkit.nn.BatchNorm.from_tf(
            features if len(features) > 1 else features[0], **ours
        )
        pairs = {"gamma": "weight", "beta": "bias"}
        values = {"gamma": self.batch.weight, "beta": self.batch.bias}
        with torch.no_grad():
            for theirs, value in values.items():
                if value is not None:
                    variable = getattr(self.theirs, theirs)
                    variable.assign(value.reshape(variable.shape))
                    getattr(self.ours, pairs[theirs]).copy_(torch.tensor(value))

    def step(self, x, dy):
        """Relative errors of one training step."""
        x_tf, x_torch = tf.constant(x), torch.tensor(x, requires_grad=True)
        variables = [v for v in (self.theirs.gamma, self.theirs.beta) if v is not None]
        with tf.GradientTape() as tape:
            tape.watch(x_tf)
            y = self.theirs(x_tf, training=True)
        theirs = tape.gradient(y, [x_tf, *variables], output_gradients=tf.constant(dy))
        ours_y = self.ours(x_torch)
        parameters = [p for p in (self.ours.weight, self.ours.bias) if p is not None]
        ours = torch.autograd.grad(ours_y, [x_torch, *parameters], torch.tensor(dy))
        found = {"y": relative_error(ours_y.detach(), y)}
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            b = b.numpy().reshape(tuple(a.shape))
            found[f"gradient {i}"] = np.abs(a.numpy() - b).max() / max(np.abs(b).max(), 1)
        for name, ours_name in STATISTICS.items():
            if name in vars(self.theirs):
                expected = getattr(self.theirs, name).numpy()
                got = getattr(self.ours, ours_name).numpy()
                found[name] = relative_error(got, expected.reshape(got.shape))
        return found


def _torch_adjustment(adjustment):
    return lambda shape: tuple(torch.tensor(v) for v in adjustment(shape))


@each_layer
def test_three_steps_and_inference(name):
    pair = Pair(name)
    rng = np.random.default_rng(0)
    for step in range(3):
        x = (pair.batch.x * (1 + 0.5 * step) + rng.standard_normal(pair.batch.x.shape)).astype("f4")
        found = pair.step(x, pair.batch.dy)
        assert len(found) >= 4
        assert max(found.values()) < FRAMEWORK, (step, found)
    pair.ours.eval()
    y = pair.theirs(tf.constant(pair.batch.x), training=False)
    with torch.no_grad():
        assert relative_error(pair.ours(torch.tensor(pair.batch.x)), y) < FRAMEWORK


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("renorm", {"renorm_momentum": 0.9}),
        ("renorm clipped", {"renorm_clipping": {**CLIP, "rmax": 1.05}}),
        ("ghost", {"virtual_batch_size": 4}),
        ("4d", {"fused": False}),
        ("2d", {"momentum": 0.2}),
    ],
)
def test_other_arguments_miss_by_far(name, change):
    pair = Pair(name)
    pair.ours = Pair(name, **change).ours
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(2):
        x = (pair.batch.x + rng.standard_normal(pair.batch.x.shape)).astype("f4")
        worst = max(worst, *pair.step(x, pair.batch.dy).values())
    assert worst > 100 * FRAMEWORK


def test_a_layer_of_tf_layers_that_is_not_trainable_uses_the_batch():
    x = make_batch((12, 5)).x
    theirs = tf.compat.v1.layers.BatchNormalization(trainable=False)
    ours = bnkit.nn.BatchNorm.from_tf(5, trainable=False)
    assert not ours.weight.requires_grad
    expected = theirs(tf.constant(x), training=True)
    assert relative_error(ours(torch.tensor(x)), expected) < FRAMEWORK
    assert (theirs.moving_mean.numpy() == 0).all()
    assert (ours.running_mean == 0).all()
    frozen = tf_keras.layers.BatchNormalization(trainable=False)(tf.constant(x), training=True)
    ours = bnkit.nn.BatchNorm(5, -1, eps=1e-3, trainable=False)
    assert relative_error(ours(torch.tensor(x)), frozen) < FRAMEWORK


def test_the_reference_of_a_frozen_layer_moves_in_tensorflow_only():
    x = make_batch((12, 5)).x
    theirs = tf.compat.v1.layers.BatchNormalization(trainable=False, renorm=True)
    ours = bnkit.nn.BatchNorm.from_tf(5, trainable=False, renorm=True)
    expected = theirs(tf.constant(x), training=True)
    assert relative_error(ours(torch.tensor(x)), expected) < FRAMEWORK
    assert (theirs.moving_mean.numpy() == 0).all()
    assert (theirs.renorm_mean.numpy() != 0).all()
    assert (ours.renorm_mean == 0).all()


@pytest.mark.parametrize("axes", [(0,), (0, 2), (1,), (0, 1, 2)])
@pytest.mark.parametrize("keepdims", [True, False])
def test_moments(axes, keepdims):
    x = make_batch((4, 6, 5)).x
    expected = tf.nn.moments(tf.constant(x), axes, keepdims=keepdims)
    for given in (x, torch.tensor(x)):
        for got, e in zip(moments(given, axes, keepdims=keepdims), expected, strict=True):
            assert tuple(got.shape) == tuple(e.shape)
            assert relative_error(got, e) < FRAMEWORK


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight", [True, False])
def test_batch_normalization(weight, bias):
    b = make_batch((4, 6, 5))
    affine = (b.bias if bias else None, b.weight if weight else None)
    expected = tf.nn.batch_normalization(b.x, b.mean, b.var, *affine, variance_epsilon=1e-3)
    assert relative_error(batch_normalization(b.x, b.mean, b.var, *affine, eps=1e-3), expected) < (
        FRAMEWORK
    )
    tensors = [v if v is None else torch.tensor(v) for v in (b.x, b.mean, b.var, *affine)]
    assert relative_error(batch_normalization(*tensors, eps=1e-3), expected) < FRAMEWORK


def test_16_bit_moments_lose_digits_in_tensorflow_only():
    x = (1000 + np.random.default_rng(0).standard_normal((256, 4))).astype("float16")
    exact = x.astype("float64").mean(0)
    theirs = tf.nn.moments(tf.constant(x), [0])[0].numpy()
    assert theirs.dtype == np.float16
    ours, var = moments(x, [0])
    assert (ours.dtype, var.dtype) == (np.float32, np.float32)
    assert relative_error(ours, exact) < 1e-6 < relative_error(theirs, exact)

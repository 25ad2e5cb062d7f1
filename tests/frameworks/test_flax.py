"""`flax.linen.BatchNorm` and `flax.nnx.BatchNorm` against the preset."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from bnkit.core import FLAX, KERAS3, TORCH, moments
from tests.frameworks.step import Step, agree, infer, make_batch, misses, train
from tests.tolerances import FRAMEWORK, relative_error

pytestmark = pytest.mark.frameworks
WHY = "`make test-frameworks` installs Flax"
jax = pytest.importorskip("jax", reason=WHY)
linen = pytest.importorskip("flax.linen", reason=WHY)
nnx = pytest.importorskip("flax.nnx", reason=WHY)

# name -> shape of the input, axis, arguments of the layer
LAYERS = {
    "2d": ((16, 5), -1, {}),
    "3d": ((8, 7, 5), -1, {}),
    "4d": ((4, 6, 5, 3), -1, {}),
    "4d axis 1": ((4, 3, 6, 5), 1, {}),
    "two axes": ((6, 3, 4, 2), (1, -1), {}),
    "5d": ((2, 3, 4, 5, 3), -1, {}),
    "two values": ((2, 5), -1, {}),
    "no bias": ((4, 6, 5, 3), -1, {"use_bias": False}),
    "no scale": ((4, 6, 5, 3), -1, {"use_scale": False}),
    "neither": ((16, 5), -1, {"use_bias": False, "use_scale": False}),
    "momentum 0.5": ((16, 5), -1, {"momentum": 0.5}),
    "momentum 0": ((16, 5), -1, {"momentum": 0.0}),
    "large epsilon": ((16, 5), -1, {"epsilon": 0.3}),
    "slow variance": ((4, 6, 5, 3), -1, {"use_fast_variance": False}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
each_api = pytest.mark.parametrize("api", ["linen", "nnx"])


class Layer(NamedTuple):
    """One layer as a pure function of x, weight and bias."""

    step: Any  # (x, weight, bias) -> y, (mean, var)
    infer: Any  # (x, weight, bias) -> y


def linen_layer(batch, mask=None, **arguments):
    layer = linen.BatchNorm(axis=batch.axis, **arguments)
    stats = {"mean": batch.mean, "var": batch.var}

    def variables(weight, bias):
        params = {k: v for k, v in {"scale": weight, "bias": bias}.items() if v is not None}
        return {"params": params, "batch_stats": stats}

    def step(x, weight, bias):
        y, new = layer.apply(
            variables(weight, bias), x, use_running_average=False, mask=mask,
            mutable=["batch_stats"],
        )  # fmt: skip
        return y, (new["batch_stats"]["mean"], new["batch_stats"]["var"])

    def run(x, weight, bias):
        return layer.apply(variables(weight, bias), x, use_running_average=True)

    return Layer(step, run)


def nnx_layer(batch, mask=None, **arguments):
    axes = (batch.axis,) if isinstance(batch.axis, int) else batch.axis
    assert len(axes) == 1, "the parameters of nnx have one axis"

    def make(weight, bias):
        layer = nnx.BatchNorm(
            batch.x.shape[axes[0]], axis=batch.axis, rngs=nnx.Rngs(0), **arguments
        )
        for key, value in {"scale": weight, "bias": bias}.items():
            if value is not None:
                getattr(layer, key)[...] = value
        layer.mean[...], layer.var[...] = batch.mean, batch.var
        return layer

    def step(x, weight, bias):
        layer = make(weight, bias)
        y = layer(x, use_running_average=False, mask=mask)
        return y, (layer.mean[...], layer.var[...])

    def run(x, weight, bias):
        return make(weight, bias)(x, use_running_average=True)

    return Layer(step, run)


APIS = {"linen": linen_layer, "nnx": nnx_layer}


def flax_step(layer, batch):
    given = [batch.x] + [p for p in (batch.weight, batch.bias) if p is not None]

    def call(*arguments):
        it = iter(arguments)
        return layer.step(*(None if p is None else next(it) for p in (batch.x, *batch[2:4])))

    y, vjp, (mean, var) = jax.vjp(call, *given, has_aux=True)
    grads = iter(vjp(jax.numpy.asarray(batch.dy)))
    by = [None if p is None else next(grads) for p in (batch.x, batch.weight, batch.bias)]
    return Step(y, mean, var, *by)


def spec_of(arguments, spec=FLAX):
    keep = arguments.get("momentum", 1 - spec.ema_weight)
    return replace(spec, eps=arguments.get("epsilon", FLAX.eps), ema_weight=1 - keep)


def layer_and_batch(api, name):
    shape, axis, arguments = LAYERS[name]
    if api == "nnx" and not isinstance(axis, int):
        pytest.skip("nnx.BatchNorm has num_features, one number")
    batch = make_batch(
        shape, axis, scale=arguments.get("use_scale", True), center=arguments.get("use_bias", True)
    )
    return APIS[api](batch, **arguments), batch, spec_of(arguments)


@each_api
@each_layer
def test_training_step(api, name):
    layer, batch, spec = layer_and_batch(api, name)
    agree(train(batch, spec), flax_step(layer, batch), batch, FRAMEWORK)


@each_api
@each_layer
def test_inference(api, name):
    layer, batch, spec = layer_and_batch(api, name)
    expected = layer.infer(batch.x, batch.weight, batch.bias)
    assert relative_error(infer(batch, spec), expected) < FRAMEWORK


def test_the_preset_has_the_defaults_of_the_layer():
    for layer in (linen.BatchNorm(), nnx.BatchNorm(3, rngs=nnx.Rngs(0))):
        assert FLAX.eps == layer.epsilon
        assert FLAX.ema_weight == pytest.approx(1 - layer.momentum)
        assert FLAX.channel_axis == layer.axis
        assert (FLAX.has_weight, FLAX.has_bias) == (layer.use_scale, layer.use_bias)
        assert layer.use_fast_variance
    assert (layer.mean[...] == FLAX.initial_mean).all()
    assert (layer.var[...] == FLAX.initial_var).all()


@each_api
@pytest.mark.parametrize("wrong", ["torch", "eps", "direction"])
def test_a_wrong_specification_misses_by_far(api, wrong):
    layer, batch, spec = layer_and_batch(api, "2d")
    other = {
        "torch": replace(TORCH, eps=spec.eps, ema_weight=spec.ema_weight),
        "eps": replace(spec, eps=KERAS3.eps),
        "direction": replace(spec, ema_weight=1 - spec.ema_weight),
    }
    found = misses(train(batch, other[wrong]), flax_step(layer, batch), batch)
    assert max(found.values()) > 20 * FRAMEWORK, found


@each_api
@pytest.mark.parametrize("shape", [(16, 5), (8, 7, 5)])
def test_mask(api, shape):
    batch = make_batch(shape)
    mask = np.random.default_rng(0).random((*shape[:-1], 1)) < 0.6
    expected = flax_step(APIS[api](batch, mask), batch)
    weights = mask.astype("float32")
    agree(train(batch, FLAX, sample_weights=weights), expected, batch, FRAMEWORK)
    assert max(misses(train(batch, FLAX), expected, batch).values()) > 1e-2


@each_api
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_batch_that_is_masked_whole_destroys_the_variance(api):
    batch = make_batch((8, 5))
    expected = flax_step(APIS[api](batch, np.zeros((8, 1), bool)), batch)
    got = train(batch, FLAX, sample_weights=np.zeros((8, 1), "float32"))
    assert np.isnan(expected.var).all()
    assert np.isnan(got.var).all()


@each_api
def test_one_value_per_channel(api):
    batch = make_batch((1, 5))
    expected = flax_step(APIS[api](batch), batch)
    agree(train(batch, FLAX), expected, batch, FRAMEWORK)
    assert relative_error(expected.var, 0.99 * batch.var) < FRAMEWORK  # a variance of 0 folded in


@each_api
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_empty_batch_destroys_the_statistics(api):
    batch = make_batch((0, 5))
    expected = flax_step(APIS[api](batch), batch)
    got = train(batch, FLAX)
    for mean, var in (expected[1:3], got[1:3]):
        assert np.isnan(mean).all()
        assert np.isnan(var).all()
    assert got.y.shape == expected.y.shape == (0, 5)


@each_api
def test_large_mean(api):
    """The default variance of Flax is E[x^2] - E[x]^2, bounded at 0; its slow form is right."""
    rng = np.random.default_rng(0)
    x = (1000 + rng.uniform(-0.1, 0.1, (256, 8))).astype("float32")
    exact = x.astype("float64").var(0)
    batch = make_batch((256, 8))._replace(x=x)
    stored = {}
    for fast in (True, False):
        layer = APIS[api](batch, momentum=0.0, use_fast_variance=fast)
        stored[fast] = np.asarray(layer.step(x, batch.weight, batch.bias)[1][1])
    assert np.abs(stored[True] / exact - 1).max() > 0.5
    assert (stored[True] >= 0).all()
    assert np.abs(moments(x, (0,)).var() / exact - 1).max() < FRAMEWORK
    assert np.abs(stored[False] / exact - 1).max() < 1e-3

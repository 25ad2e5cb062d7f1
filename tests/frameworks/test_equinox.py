"""`equinox.nn.BatchNorm` in both of its modes against the presets."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from bnkit.core import EQUINOX_BATCH, EQUINOX_EMA, FLAX, RunningStats
from bnkit.functional import batch_norm_backward, batch_norm_eval, batch_norm_train
from tests.frameworks.step import Step, agree, make_batch, misses, train
from tests.tolerances import FRAMEWORK, relative_error

pytestmark = pytest.mark.frameworks
WHY = "`make test-frameworks` installs Equinox"
jax = pytest.importorskip("jax", reason=WHY)
eqx = pytest.importorskip("equinox", reason=WHY)

PRESETS = {"ema": EQUINOX_EMA, "batch": EQUINOX_BATCH}
each_mode = pytest.mark.parametrize("mode", PRESETS)
# name -> shape of the batch (examples, channels, ...), arguments of the layer
LAYERS = {
    "2d": ((16, 5), {}),
    "3d": ((8, 5, 7), {}),
    "4d": ((4, 3, 6, 5), {}),
    "two values": ((2, 5), {}),
    "no affine": ((4, 3, 6, 5), {"channelwise_affine": False}),
    "momentum 0.5": ((16, 5), {"momentum": 0.5}),
    "large epsilon": ((16, 5), {"eps": 0.3}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


class Stored(NamedTuple):
    """What an Equinox layer keeps outside of itself."""

    mean: Any
    var: Any
    seen: int  # batches; the ema mode keeps only whether there was one


class Run:
    """A layer with its state, called on whole batches."""

    def __init__(self, batch, mode, stored=None, **arguments):
        layer, self.state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
            batch.x.shape[1], axis_name="batch", mode=mode, **arguments
        )
        self.mode = mode
        if layer.weight is not None:
            put = (jax.numpy.asarray(batch.weight), jax.numpy.asarray(batch.bias))
            layer = eqx.tree_at(lambda m: (m.weight, m.bias), layer, put)
        self.layer = layer
        if stored is not None:
            self._store(stored)

    def _store(self, stored):
        arrays = (jax.numpy.asarray(stored.mean), jax.numpy.asarray(stored.var))
        if self.mode == "ema":
            first = jax.numpy.asarray(stored.seen == 0)
            self.state = self.state.set(self.layer.ema_first_time_index, first)
            self.state = self.state.set(self.layer.ema_state_index, arrays)
        else:
            count = jax.numpy.array(stored.seen)
            self.state = self.state.set(self.layer.batch_counter, count)
            self.state = self.state.set(self.layer.batch_state_index, arrays)

    def stored(self):
        if self.mode == "ema":
            first = self.state.get(self.layer.ema_first_time_index)
            return Stored(*self.state.get(self.layer.ema_state_index), int(not first))
        count = self.state.get(self.layer.batch_counter)
        return Stored(*self.state.get(self.layer.batch_state_index), int(count))

    def step(self, batch):
        def call(x, layer):
            mapped = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
            return mapped(x, self.state)

        x = jax.numpy.asarray(batch.x)
        y, vjp, self.state = eqx.filter_vjp(call, x, self.layer, has_aux=True)
        dx, by_layer = vjp(jax.numpy.asarray(batch.dy))
        grads = (None, None) if batch.weight is None else (by_layer.weight, by_layer.bias)
        return Step(y, *self.stored()[:2], dx, *grads)

    def infer(self, x):
        layer = eqx.nn.inference_mode(self.layer)
        mapped = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return mapped(x, self.state)[0]


def running(stored, mode, keep):
    """The same stored numbers for bnkit."""
    if mode == "ema":
        return RunningStats(stored.mean, stored.var, stored.seen, 1.0)
    return RunningStats(stored.mean, stored.var, stored.seen, 1 - keep**stored.seen)


def case(name, mode):
    shape, arguments = LAYERS[name]
    affine = arguments.get("channelwise_affine", True)
    batch = make_batch(shape, 1, scale=affine, center=affine)
    spec = PRESETS[mode]
    spec = replace(
        spec,
        eps=arguments.get("eps", spec.eps),
        ema_weight=1 - arguments.get("momentum", 1 - spec.ema_weight),
    )
    return batch, spec, arguments


@each_mode
@each_layer
@pytest.mark.parametrize("seen", [0, 1, 30])
def test_training_step(name, mode, seen):
    batch, spec, arguments = case(name, mode)
    stored = Stored(batch.mean, batch.var, seen)
    run = Run(batch, mode, stored, **arguments)
    state = running(stored, mode, 1 - spec.ema_weight)
    agree(train(batch, spec, state), run.step(batch), batch, FRAMEWORK)


@each_mode
@each_layer
def test_three_steps_from_the_start_and_inference(name, mode):
    batch, spec, arguments = case(name, mode)
    run, state = Run(batch, mode, **arguments), None
    for scale in (1.0, 2.0, 0.5):
        seen = batch._replace(x=batch.x * np.float32(scale))
        expected = run.step(seen)
        y, state, saved = batch_norm_train(seen.x, seen.weight, seen.bias, state, spec)
        grads = batch_norm_backward(seen.dy, saved)
        got = Step(y, state.mean, state.var, grads.x, grads.weight, grads.bias)
        agree(got, expected, seen, FRAMEWORK)
        y = batch_norm_eval(batch.x, batch.weight, batch.bias, state, spec)
        assert relative_error(y, run.infer(batch.x)) < FRAMEWORK


def test_the_presets_have_the_defaults_of_the_layer():
    for mode, spec in PRESETS.items():
        run = Run(make_batch((4, 3), 1), mode)
        assert spec.eps == run.layer.eps
        assert spec.ema_weight == pytest.approx(1 - run.layer.momentum)
        assert spec.has_weight
        assert run.layer.channelwise_affine
    mean, var, seen = run.stored()  # the ema mode has none before its first batch
    assert (mean == spec.initial_mean).all()
    assert (var == spec.initial_var).all()
    assert seen == 0


def test_first_batch_is_copied_in_ema_mode():
    batch = make_batch((16, 5), 1)
    run = Run(batch, "ema")
    run.step(batch)
    state = batch_norm_train(batch.x, spec=EQUINOX_EMA).state
    assert relative_error(run.stored().mean, batch.x.mean(0)) < FRAMEWORK
    assert relative_error(state.mean, batch.x.mean(0)) < FRAMEWORK
    assert relative_error(run.stored().var, state.var) < FRAMEWORK


def test_variance_is_that_of_99_ones_after_the_first_batch_in_batch_mode():
    batch = make_batch((16, 5), 1)
    run = Run(batch, "batch")
    run.step(batch)
    _, state, _ = batch_norm_train(batch.x, spec=EQUINOX_BATCH)
    assert relative_error(state.var / state.weight, 99 + batch.x.var(0)) < FRAMEWORK
    y = (batch.x - batch.x.mean(0)) / np.sqrt(99 + batch.x.var(0)) * batch.weight + batch.bias
    assert relative_error(run.infer(batch.x), y) < FRAMEWORK


@each_mode
@pytest.mark.parametrize("wrong", ["other mode", "flax", "direction"])
def test_a_wrong_specification_misses_by_far(mode, wrong):
    batch, spec, _ = case("2d", mode)
    stored = Stored(batch.mean, batch.var, 30)
    state = running(stored, mode, 1 - spec.ema_weight)
    other = {
        "other mode": PRESETS["batch" if mode == "ema" else "ema"],
        "flax": FLAX,
        "direction": replace(spec, ema_weight=1 - spec.ema_weight),
    }[wrong]
    run = Run(batch, mode, stored)
    found = misses(train(batch, other, state), run.step(batch), batch)
    y = batch_norm_eval(batch.x, batch.weight, batch.bias, state, other, channel_axis=1)
    found["inference"] = relative_error(y, Run(batch, mode, stored).infer(batch.x))
    assert max(found.values()) > 20 * FRAMEWORK, found


@each_mode
def test_one_value_per_channel(mode):
    batch = make_batch((1, 5), 1)
    stored = Stored(batch.mean, batch.var, 30)
    spec = PRESETS[mode]
    state = running(stored, mode, 1 - spec.ema_weight)
    expected = Run(batch, mode, stored).step(batch)
    agree(train(batch, spec, state), expected, batch, FRAMEWORK)
    assert relative_error(expected.var, 0.99 * batch.var) < FRAMEWORK


@each_mode
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_empty_batch_destroys_the_statistics(mode):
    batch = make_batch((0, 5), 1)
    stored = Stored(batch.mean, batch.var, 30)
    state = running(stored, mode, 1 - PRESETS[mode].ema_weight)
    expected, got = Run(batch, mode, stored).step(batch), train(batch, PRESETS[mode], state)
    for mean, var in (expected[1:3], got[1:3]):
        assert np.isnan(mean).all()
        assert np.isnan(var).all()
    assert got.y.shape == expected.y.shape == (0, 5)


@each_mode
def test_inference_before_the_first_batch(mode):
    batch = make_batch((16, 5), 1)
    y = batch_norm_eval(batch.x, batch.weight, batch.bias, None, PRESETS[mode])
    assert relative_error(y, Run(batch, mode).infer(batch.x)) < FRAMEWORK

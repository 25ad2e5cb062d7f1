"""`haiku.BatchNorm` against the preset: an average that starts at 0 and is debiased."""

from dataclasses import replace

import numpy as np
import pytest

from bnkit.core import FLAX, HAIKU, TORCH, RunningStats, moments, read_running
from bnkit.functional import batch_norm_backward, batch_norm_eval, batch_norm_train
from tests.frameworks.step import Step, agree, make_batch, misses, train
from tests.tolerances import FRAMEWORK, relative_error

pytestmark = pytest.mark.frameworks
WHY = "`make test-frameworks` installs Haiku"
jax = pytest.importorskip("jax", reason=WHY)
hk = pytest.importorskip("haiku", reason=WHY)

# name -> shape of the input, arguments of the layer
LAYERS = {
    "2d": ((16, 5), {}),
    "3d": ((8, 7, 5), {}),
    "4d": ((4, 6, 5, 3), {}),
    "4d NCHW": ((4, 3, 6, 5), {"data_format": "channels_first"}),
    "two values": ((2, 5), {}),
    "no offset": ((16, 5), {"create_offset": False}),
    "no scale": ((16, 5), {"create_scale": False}),
    "neither": ((4, 6, 5, 3), {"create_offset": False, "create_scale": False}),
    "decay 0.5": ((16, 5), {"decay_rate": 0.5}),
    "large eps": ((16, 5), {"eps": 0.3}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
DEFAULTS = {"decay_rate": 0.9, "create_scale": True, "create_offset": True}


class Run:
    """A layer with its parameters and state."""

    def __init__(self, batch, **arguments):
        self.batch = batch
        self.arguments = DEFAULTS | arguments

        def forward(x, *, is_training=True, test_local_stats=False):
            return hk.BatchNorm(name="bn", **self.arguments)(
                x, is_training, test_local_stats=test_local_stats
            )

        self.layer = hk.without_apply_rng(hk.transform_with_state(forward))
        x = jax.numpy.asarray(batch.x)
        self.params, self.state = self.layer.init(jax.random.PRNGKey(0), x)
        for key, value in {"scale": batch.weight, "offset": batch.bias}.items():
            if value is not None:
                shape = self.params["bn"][key].shape
                self.params["bn"][key] = jax.numpy.asarray(value.reshape(shape))

    def stored(self, what):
        """`hidden` or `average` of the mean and the variance, flat."""
        emas = (self.state[f"bn/~/{name}_ema"] for name in ("mean", "var"))
        return [np.asarray(ema[what]).reshape(-1) for ema in emas]

    def step(self, batch):
        def call(x, params):
            return self.layer.apply(params, self.state, x)

        x = jax.numpy.asarray(batch.x)
        y, vjp, self.state = jax.vjp(call, x, self.params, has_aux=True)
        dx, params = vjp(jax.numpy.asarray(batch.dy))
        by = [params.get("bn", {}).get(key) for key in ("scale", "offset")]
        by = [None if g is None else np.asarray(g).reshape(-1) for g in by]
        return Step(y, *self.stored("hidden"), dx, *by)

    def infer(self, x, **options):
        return self.layer.apply(self.params, self.state, x, is_training=False, **options)[0]


def case(name):
    shape, arguments = LAYERS[name]
    axis = 1 if arguments.get("data_format") == "channels_first" else -1
    batch = make_batch(
        shape, axis, scale=arguments.get("create_scale", True),
        center=arguments.get("create_offset", True),
    )  # fmt: skip
    keep = arguments.get("decay_rate", DEFAULTS["decay_rate"])
    spec = replace(HAIKU, eps=arguments.get("eps", HAIKU.eps), ema_weight=1 - keep)
    return batch, spec, Run(batch, **arguments)


@each_layer
def test_three_steps_from_the_start_and_inference(name):
    batch, spec, run = case(name)
    state = None
    for scale in (1.0, 2.0, 0.5):
        seen = batch._replace(x=batch.x * np.float32(scale))
        expected = run.step(seen)
        y, state, saved = batch_norm_train(
            seen.x, seen.weight, seen.bias, state, spec, channel_axis=seen.axis
        )
        grads = batch_norm_backward(seen.dy, saved)
        got = Step(y, state.mean, state.var, grads.x, grads.weight, grads.bias)
        agree(got, expected, seen, FRAMEWORK)
        for ours, theirs in zip(read_running(state, spec), run.stored("average"), strict=True):
            assert relative_error(ours, theirs) < FRAMEWORK
        y = batch_norm_eval(batch.x, batch.weight, batch.bias, state, spec, channel_axis=batch.axis)
        assert relative_error(y, run.infer(batch.x)) < FRAMEWORK


def test_the_preset_has_the_defaults_of_the_layer():
    run = Run(make_batch((16, 5)))
    layer = hk.testing.transform_and_run(lambda: hk.BatchNorm(**DEFAULTS))()
    assert HAIKU.eps == layer.eps
    assert HAIKU.channel_axis == layer.channel_index
    assert run.params["bn"]["scale"].shape == (1, 5)
    assert HAIKU.parameter_shape == "broadcast"
    for hidden, initial in zip(
        run.stored("hidden"), (HAIKU.initial_mean, HAIKU.initial_var), strict=True
    ):
        assert (hidden == initial).all()


def test_init_leaves_the_average_of_its_own_batch():
    """What the note of the preset warns of: `average` is set, `hidden` and `counter` are not."""
    batch = make_batch((16, 5))
    run = Run(batch)
    mean, var = run.stored("average")
    assert relative_error(mean, batch.x.mean(0)) < FRAMEWORK
    assert relative_error(var, batch.x.var(0)) < FRAMEWORK
    assert not np.any(run.stored("hidden"))


def test_local_statistics_at_test_time_move_nothing():
    batch = make_batch((16, 5))
    run = Run(batch)
    before = run.stored("average")
    y = run.infer(batch.x * 3, test_local_stats=True)
    got = batch_norm_train(batch.x * 3, batch.weight, batch.bias, spec=HAIKU, channel_axis=-1)
    assert relative_error(got.y, y) < FRAMEWORK
    assert np.array_equal(before, run.stored("average"))


@pytest.mark.parametrize("wrong", ["no debias", "flax", "torch", "direction"])
def test_a_wrong_specification_misses_by_far(wrong):
    batch, spec, run = case("2d")
    other = {
        "no debias": replace(spec, debias="none"),
        "flax": FLAX,
        "torch": replace(TORCH, channel_axis=-1),
        "direction": replace(spec, ema_weight=1 - spec.ema_weight),
    }[wrong]
    expected = run.step(batch)
    found = misses(train(batch, other, zero_state(batch)), expected, batch)
    state = batch_norm_train(batch.x, state=zero_state(batch), spec=other).state
    y = batch_norm_eval(batch.x, batch.weight, batch.bias, state, other)
    found["inference"] = relative_error(y, run.infer(batch.x))
    assert max(found.values()) > 20 * FRAMEWORK, found


def zero_state(batch):
    return RunningStats(np.zeros_like(batch.mean), np.zeros_like(batch.var), 0, 0.0)


def test_one_value_per_channel():
    batch = make_batch((1, 5))
    expected = Run(batch).step(batch)
    assert relative_error(expected.y, batch.bias[None]) < FRAMEWORK
    agree(train(batch, HAIKU, zero_state(batch)), expected, batch, FRAMEWORK)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_empty_batch_destroys_the_average():
    batch = make_batch((0, 5))
    run = Run(batch)
    expected, got = run.step(batch), train(batch, HAIKU, zero_state(batch))
    for mean, var in (expected[1:3], got[1:3]):
        assert np.isnan(mean).all()
        assert np.isnan(var).all()
    assert got.y.shape == expected.y.shape == (0, 5)


def test_large_mean_gives_haiku_a_negative_variance():
    rng = np.random.default_rng(0)
    x = (1000 + rng.uniform(-0.1, 0.1, (256, 8))).astype("float32")
    run = Run(make_batch((256, 8))._replace(x=x))
    assert run.stored("average")[1].min() < 0
    assert np.isnan(run.infer(x)).any()
    exact = x.astype("float64").var(0)
    assert np.abs(moments(x, (0,)).var() / exact - 1).max() < FRAMEWORK

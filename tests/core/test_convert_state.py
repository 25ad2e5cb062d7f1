"""Conversion of one batch norm between specifications: inference equal, the next step judged."""

from dataclasses import replace

import numpy as np
import pytest

from bnkit.core import (
    CAFFE,
    CONTRIB,
    EQUINOX_BATCH,
    EQUINOX_EMA,
    HAIKU,
    KERAS3,
    MXNET_OP,
    ONNX,
    PADDLE,
    PRESETS,
    TF_KERAS2_FUSED,
    TF_LAYERS_FUSED,
    TF_LAYERS_UNFUSED,
    TORCH,
    BatchNormSpec,
    BatchNormState,
    ConversionError,
    Moments,
    RunningStats,
    convert_state,
    next_weights,
    read_state,
    scale_shift,
    update_running,
)

KEYS = list(PRESETS)


def numbers(spec: BatchNormSpec, *, dtype=np.float64, count: int = 7, seed: int = 0):
    """A state as a framework with this specification would hold it after some batches."""
    draw = np.random.default_rng(seed)
    c = 9
    mean, var = draw.normal(size=c), np.exp(draw.normal(size=c) * 3 - 3)
    share, factor = 1.0, None
    if spec.debias == "both":
        share = 1 - (1 - spec.ema_weight) ** count
        if spec.stored_average == "sum":
            share = factor = share / spec.ema_weight
    cast = lambda a: a.astype(dtype)  # noqa: E731
    return BatchNormState(
        weight=cast(draw.normal(size=c)),
        bias=cast(draw.normal(size=c)),
        running_mean=cast(mean * share),
        running_var=cast(var * share),
        count=count,
        factor=factor,
    )


def affine(state, spec, name=""):
    read = read_state(state, spec, name=name)
    return np.stack(scale_shift(np, (read.mean, read.var), read.weight, read.bias, read.eps))


def close(left, right, rtol):
    """Scale relative to itself, shift relative to the terms that it is the sum of."""
    np.testing.assert_allclose(left[0], right[0], rtol=rtol)
    np.testing.assert_allclose(left[1], right[1], rtol=0, atol=rtol * (1 + abs(right)).max())


@pytest.mark.parametrize("target", KEYS)
@pytest.mark.parametrize("source", KEYS)
def test_inference_is_equal_for_every_pair(source, target):
    left, right = PRESETS[source].spec, PRESETS[target].spec
    state = numbers(left)
    if right.weight_fixed and not left.weight_fixed:
        with pytest.raises(ConversionError, match="fix_gamma=False"):
            convert_state(state, left, right)
        right = replace(right, weight_fixed=False)
    done = convert_state(state, left, right)
    close(affine(done.state, right), affine(state, left), 1e-12)


@pytest.mark.parametrize("source", KEYS)
def test_float32_states_lose_one_rounding(source):
    spec = PRESETS[source].spec
    state = numbers(spec, dtype=np.float32)
    done = convert_state(state, spec, TORCH)
    assert done.state.running_var.dtype == np.float32
    close(affine(done.state, TORCH), affine(state, spec), 2.0**-22)


def step(state: BatchNormState, spec: BatchNormSpec, batch: Moments) -> BatchNormState:
    """The state after one more batch, by `update_running`; Caffe's sums by way of averages."""
    a = spec.ema_weight
    scale = a if state.factor is not None else 1.0
    seen = 1 if state.count is None else state.count
    stats = RunningStats(state.running_mean * scale, state.running_var * scale, seen)
    after = update_running(stats, batch, spec)
    factor = None if state.factor is None else (1 - a) * state.factor + 1
    return replace(
        state,
        running_mean=after.mean / scale,
        running_var=after.var / scale,
        count=None if state.count is None else state.count + 1,
        factor=factor,
    )


@pytest.mark.parametrize("count", [2, 40, 2**26])
@pytest.mark.parametrize("target", KEYS)
@pytest.mark.parametrize("source", KEYS)
def test_the_next_step_is_equal_exactly_where_that_is_claimed(source, target, count):
    left, right = PRESETS[source].spec, PRESETS[target].spec
    if "never" in (left.update_when, right.update_when):
        pytest.skip("never updates")
    right = replace(right, weight_fixed=False)
    state = numbers(left, count=30)
    done = convert_state(state, left, right, count=count)
    draw = np.random.default_rng(1)
    mean, var = draw.normal(size=9), np.exp(draw.normal(size=9))
    batch = Moments(count, mean, var * count)
    before = affine(step(state, left, batch), left)
    after = affine(step(done.state, right, batch), right)
    if done.one_step.statistics:
        close(after, before, 1e-6)
    else:
        assert not np.allclose(after, before, rtol=2e-7, atol=0)
    x = draw.normal(size=(4, 9)) * np.sqrt(var) + mean
    outputs = [
        (x - mean) / np.sqrt(var + e.effective_eps) * (1 if e.weight_fixed else s.weight)
        for s, e in ((state, left), (done.state, right))
    ]
    same = np.allclose(*outputs, rtol=1e-6)
    normalizes_alike = left.train_statistics == right.train_statistics
    assert done.one_step.output == (same and normalizes_alike)


def test_a_variance_that_would_be_negative_moves_into_the_weight():
    state = BatchNormState(
        running_mean=np.zeros(3),
        running_var=np.array([0.0, 1e-4, 2.0]),
        weight=np.array([2.0, 3.0, 4.0]),
    )
    done = convert_state(state, TORCH, KERAS3)
    assert (done.state.running_var >= 0).all()
    np.testing.assert_array_equal(done.state.running_var[:2], [0.0, 1e-4])
    assert done.state.weight[2] == 4.0
    close(affine(done.state, KERAS3), affine(state, TORCH), 1e-14)
    assert "2 of 3 channels" in done.notes[0]


def test_without_a_weight_one_is_made_where_eps_needs_it():
    state = BatchNormState(running_mean=np.zeros(2), running_var=np.array([0.0, 1.0]))
    done = convert_state(state, TORCH, CAFFE)
    assert done.state.weight is None
    done = convert_state(state, TORCH, replace(CAFFE, eps=1e-3))
    assert done.state.weight is not None
    assert done.state.bias is None
    close(affine(done.state, replace(CAFFE, eps=1e-3)), affine(state, TORCH), 1e-14)


def test_a_small_eps_below_the_floor_of_the_kernel_is_what_the_kernel_adds():
    source = replace(TF_LAYERS_FUSED, eps=1e-7)
    state = BatchNormState(running_mean=np.zeros(1), running_var=np.array([1e-6]))
    done = convert_state(state, source, replace(TORCH, eps=1e-7))
    np.testing.assert_allclose(done.state.running_var + 1e-7, 1e-6 + 1.001e-5, rtol=1e-12)


def test_a_fixed_weight_is_read_as_one():
    state = replace(numbers(MXNET_OP), weight=np.full(9, 7.0))
    done = convert_state(state, MXNET_OP, TORCH)
    np.testing.assert_array_equal(done.state.weight, np.ones(9))


def test_haiku_and_contrib_keep_the_debiased_average_beside_the_other():
    base = numbers(TORCH)
    extra = {"hidden_mean": base.running_mean * 0.5, "hidden_var": base.running_var * 0.5}
    done = convert_state(replace(base, extra=extra), HAIKU, TORCH)
    np.testing.assert_array_equal(done.state.running_mean, base.running_mean)
    assert not done.exact
    assert "hidden_mean, hidden_var" in done.notes[-1]
    spec = replace(CONTRIB, debias="mean")
    done = convert_state(replace(base, extra={"biased_mean": base.bias}), spec, TORCH)
    np.testing.assert_array_equal(done.state.running_mean, base.running_mean)


def test_ghost_and_haiku_shapes_become_flat():
    state = BatchNormState(
        running_mean=np.zeros((1, 1, 1, 1, 5)),
        running_var=np.ones((1, 1, 1, 1, 5)),
        weight=np.ones((1, 1, 1, 1, 5)),
    )
    spec = replace(TF_LAYERS_UNFUSED, virtual_batch_size=4)
    done = convert_state(state, spec, TORCH)
    assert done.state.weight.shape == (5,)
    assert not done.one_step.output


def test_renormalization_keeps_its_inference_and_loses_its_training():
    extra = {"moving_stddev": np.ones(9), "renorm_mean": np.ones(9), "renorm_stddev": np.ones(9)}
    spec = replace(TF_LAYERS_UNFUSED, train_statistics="renorm", tracked_second_moment="stddev")
    state = replace(numbers(spec), extra=extra)
    plain = replace(spec, train_statistics="batch", tracked_second_moment="variance")
    done = convert_state(state, spec, plain)
    close(affine(done.state, plain), affine(state, spec), 1e-14)
    assert not done.one_step.statistics
    assert not done.one_step.output
    assert convert_state(state, spec, spec).exact
    assert convert_state(state, spec, spec).state.extra.keys() == extra.keys()


def test_bessel_needs_the_count():
    state = numbers(TORCH)
    keras = replace(KERAS3, eps=TORCH.eps, ema_weight=TORCH.ema_weight)
    unknown = convert_state(state, TORCH, keras)
    small = convert_state(state, TORCH, keras, count=33)
    large = convert_state(state, TORCH, keras, count=2**26)
    assert [c.exact for c in (unknown, small, large)] == [False, False, True]
    reasons = [
        next(c.reason for c in done.one_step.claims if c.field == "running_correction")
        for done in (unknown, small, large)
    ]
    assert "pass count" in reasons[0]
    assert "0.969697" in reasons[1]
    assert large.one_step.output


def test_paddle_and_onnx_train_alike_and_torch_does_not():
    state = numbers(PADDLE)
    assert convert_state(state, PADDLE, ONNX).exact
    assert not convert_state(state, PADDLE, TORCH).exact


def test_the_weight_of_the_next_batch():
    one = BatchNormState(count=0)
    assert next_weights(one, EQUINOX_EMA) == (1.0, 1.0)
    assert next_weights(one, EQUINOX_BATCH) == pytest.approx((1.0, 1.0))
    assert next_weights(replace(one, factor=0.0), CAFFE) == (1.0, 1.0)
    assert next_weights(replace(one, count=3), replace(TORCH, ema_weight=None)) == (0.25, 0.25)
    assert next_weights(BatchNormState(), EQUINOX_BATCH) is None
    assert next_weights(BatchNormState(), TF_KERAS2_FUSED) == (0.01, 0.01)


@pytest.mark.parametrize(
    ("state", "spec", "words"),
    [
        ({}, TORCH, "got none stored (running_mean and running_var)"),
        ({"running_mean": np.zeros(2), "running_var": np.ones(3)}, TORCH, "running_var of shape"),
        (
            {"running_mean": np.zeros(2), "running_var": np.ones(2), "weight": np.ones(4)},
            TORCH,
            "expected weight of shape (2,)",
        ),
        ({"running_mean": np.zeros(2), "running_var": np.array([1, -1.0])}, KERAS3, "channel 1"),
        ({"running_mean": np.zeros(2), "running_var": np.array([1, np.nan])}, KERAS3, "finite"),
        ({"running_mean": np.zeros(2), "running_var": np.ones(2)}, EQUINOX_BATCH, "no counter"),
        (
            {"running_mean": np.zeros(2), "running_var": np.ones(2), "factor": 0.0},
            CAFFE,
            "no batch has entered",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(state, spec, words):
    with pytest.raises(ConversionError, match="batch norm 'stem/bn'") as caught:
        read_state(BatchNormState(**state), spec, name="stem/bn")
    assert words in str(caught.value)


def test_several_channel_axes_do_not_fit_where_there_is_one():
    state = BatchNormState(running_mean=np.zeros((1, 3, 1, 2)), running_var=np.ones((1, 3, 1, 2)))
    with pytest.raises(ConversionError, match=r"got parameters of shape \(1, 3, 1, 2\)"):
        convert_state(state, TF_LAYERS_UNFUSED, TORCH)
    done = convert_state(state, TF_LAYERS_UNFUSED, replace(TF_LAYERS_UNFUSED, eps=0.0))
    assert done.state.running_mean.shape == (1, 3, 1, 2)

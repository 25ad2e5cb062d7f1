"""Folding of arrays: laws that hold for every namespace, layout and group count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit.core import (
    Affine,
    InputError,
    WeightLayout,
    border_error,
    channel_ranges,
    compose,
    equivalent_state,
    fold_left,
    fold_right,
    inference_affine,
    pad_values,
    rounded,
    split,
    spread,
)
from tests.tolerances import FLOAT64, relative_error

rng = np.random.default_rng(0)
LAYOUTS = [WeightLayout(g, transposed=t) for g in (1, 2, 4) for t in (False, True)]


def dense(weight, layout):
    """The weight as one matrix per kernel position: (positions, out, in)."""
    g, kernel = layout.groups, weight.shape[2:]
    out, into = layout.out_channels(weight.shape), layout.in_channels(weight.shape)
    full = np.zeros((int(np.prod(kernel)), out, into))
    flat = weight.reshape(*weight.shape[:2], -1)
    for group in range(g):
        for a in range(weight.shape[0] // g):
            for b in range(weight.shape[1]):
                values = flat[group * (weight.shape[0] // g) + a, b]
                if layout.transposed:
                    o, i = group * weight.shape[1] + b, group * (weight.shape[0] // g) + a
                else:
                    o, i = group * (weight.shape[0] // g) + a, group * weight.shape[1] + b
                full[:, o, i] = values
    return full


def affine_of(channels):
    return Affine(rng.normal(size=channels), rng.normal(size=channels))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kernel", [(), (3,), (2, 3)])
def test_folding_is_that_of_the_dense_matrices(space, layout, kernel):
    weight = rng.normal(size=(8, 4, *kernel))
    out, into = layout.out_channels(weight.shape), layout.in_channels(weight.shape)
    bias, left, right = rng.normal(size=out), affine_of(out), affine_of(into)
    matrices = dense(weight, layout)
    given = space(weight), space(bias)
    got = fold_left(space.xp, *given, Affine(*map(space, left)), layout)
    expected = matrices * left.scale[:, None]
    assert relative_error(dense(space.back(got.weight), layout), expected) < FLOAT64
    assert relative_error(space.back(got.bias), bias * left.scale + left.shift) < FLOAT64
    got = fold_right(space.xp, *given, Affine(*map(space, right)), layout)
    assert relative_error(dense(space.back(got.weight), layout), matrices * right.scale) < FLOAT64
    shifted = matrices @ right.shift
    assert relative_error(space.back(got.bias), bias + shifted.sum(0)) < FLOAT64
    without = fold_right(space.xp, given[0], None, Affine(*map(space, right)), layout)
    assert relative_error(space.back(without.bias), shifted.sum(0)) < FLOAT64
    # a border misses some positions: no subset of them is further off than the bound
    bound = border_error(space.xp, given[0], space(right.shift), layout)
    chosen = rng.random((20, len(shifted))) < 0.5
    worst = max(np.abs(shifted[c].sum(0)).max(initial=0) for c in chosen)
    assert worst <= bound * (1 + 1e-12)
    assert bound == pytest.approx(np.abs(shifted).sum(0).max())
    ranges = channel_ranges(space.xp, given[0], layout)
    assert relative_error(space.back(ranges), np.abs(matrices).max((0, 2))) < FLOAT64


def test_scale_and_shift_of_an_evaluated_batch_norm(space):
    mean, weight, bias = rng.normal(size=(3, 6))
    var, x = rng.uniform(0.1, 2, 6), rng.normal(size=(9, 6))
    for w, b in ((weight, bias), (None, None), (weight, None), (None, bias)):
        got = inference_affine(space.xp, (space(mean), space(var)), space(w), space(b), 1e-3)
        expected = (x - mean) / np.sqrt(var + 1e-3)
        expected = expected * (1 if w is None else w) + (0 if b is None else b)
        values = x * space.back(got.scale) + space.back(got.shift)
        assert relative_error(values, expected) < FLOAT64


def test_float32_statistics_are_computed_in_float64():
    narrow = [rng.normal(size=4).astype(np.float32), np.full(4, 3, np.float32)]
    got = inference_affine(np, tuple(narrow), None, None, 1e-5)
    assert got.scale.dtype == np.float64
    assert relative_error(got.scale, 1 / np.sqrt(3 + 1e-5)) < 1e-15


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_laws(channels, parts, seed):
    r = np.random.default_rng(seed)
    weight, bias = r.normal(size=(channels, 3)), r.normal(size=channels)
    a, b = (Affine(*r.normal(size=(2, channels))) for _ in range(2))
    once = fold_left(np, weight, bias, compose(a, b))
    twice = fold_left(np, *fold_left(np, weight, bias, a), b)
    assert relative_error(twice.weight, once.weight) < FLOAT64
    assert relative_error(twice.bias, once.bias) < 1e-9
    c = Affine(*r.normal(size=(2, 3)))
    left_first = fold_right(np, *fold_left(np, weight, bias, a), c)
    right_first = fold_left(np, *fold_right(np, weight, bias, c), a)
    assert relative_error(left_first.weight, right_first.weight) < FLOAT64
    assert relative_error(left_first.bias, right_first.bias) < 1e-9
    whole = Affine(*r.normal(size=(2, channels * parts)))
    pieces = split(whole, [channels] * parts)
    assert np.array_equal(np.concatenate([p.shift for p in pieces]), whole.shift)
    values = pad_values(np, a)
    assert np.abs(a.scale * values + a.shift).max() < 1e-12 * max(1, np.abs(a.shift).max())


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 5), st.floats(-3, 3))
def test_the_equivalent_batch_norm_changes_nothing(weight, bias, var, mean):
    one, eps = np.ones(1), 1e-5
    state = equivalent_state(np, (mean * one, var * one), weight * one, bias * one, eps)
    affine = inference_affine(np, state[:2], state.weight, state.bias, eps)
    assert affine.scale[0] == pytest.approx(1, abs=1e-12)
    assert affine.shift[0] == pytest.approx(0, abs=1e-12)
    # what the batch norm put out has these moments
    x = mean + np.sqrt(var) * rng.choice([-1, 1], 1000)
    y = (x - mean) / np.sqrt(var + eps) * weight + bias
    assert state.running_var[0] == pytest.approx(((y - bias) ** 2).mean(), rel=1e-9, abs=1e-15)
    assert state.running_mean[0] == pytest.approx(bias)


def test_spread():
    assert spread(np, np.array([3.0, 1.0, 2.0])) == 1.5
    assert spread(np, np.array([1.0, 3.0])) == 1.5
    assert spread(np, np.zeros(3)) == 1
    assert spread(np, np.array([0.0, 0.0, 1.0])) == np.inf


def test_bad_numbers_and_shapes():
    one = np.ones(2)
    with pytest.raises(InputError, match="expected positive values"):
        inference_affine(np, (one, np.array([1.0, -1.0])), None, None, 1e-5)
    with pytest.raises(InputError, match="expected positive values"):
        inference_affine(np, (one, one * np.nan), None, None, 1e-5)
    with pytest.raises(InputError, match="expected finite values"):
        inference_affine(np, (one * np.inf, one), None, None, 1e-5)
    with pytest.raises(InputError, match="3 output channels of the map, got 2"):
        fold_left(np, np.ones((3, 2)), None, Affine(one, one))
    with pytest.raises(InputError, match="3 input channels of the map, got 2"):
        fold_right(np, np.ones((2, 3)), None, Affine(one, one))
    with pytest.raises(InputError, match="scale 0 with a shift"):
        pad_values(np, Affine(0 * one, one))
    assert pad_values(np, Affine(0 * one, 0 * one)).tolist() == [0, 0]
    with pytest.raises(InputError, match="expected finite values"):
        pad_values(np, Affine(1e-300 * one, 1e300 * one))
    with pytest.raises(InputError, match="expected 2 channels in all"):
        split(Affine(one, one), [1, 2])
    with np.errstate(over="ignore"), pytest.raises(InputError, match="within"):
        rounded(np, np.array([1e6]), np.float16)
    assert rounded(np, np.array([1e-30, np.inf]), np.float32).dtype == np.float32

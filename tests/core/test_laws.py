"""Laws that hold for all inputs: merge is a commutative monoid, batch norm forgets affine maps."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bnkit.core import BNKIT, Moments, RunningStats, merge, merge_stacked, moments, scale_shift
from bnkit.functional import batch_norm_backward, batch_norm_eval, batch_norm_train

finite = st.floats(-1e3, 1e3, allow_nan=False, width=64)
# equal values need a spread that rounding does not swallow
batches = st.integers(1, 8).flatmap(lambda n: arrays(np.float64, (n, 2), elements=finite))


def parts(x):
    return moments(x, (0,))


def agree(a: Moments, b: Moments):
    scale = 1 + np.abs(b.mean)
    np.testing.assert_allclose(a.count, b.count)
    np.testing.assert_allclose(a.mean / scale, b.mean / scale, atol=1e-12)
    # m2 is made of squares of numbers up to 1e3
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-9, atol=1e-7)


@given(batches, batches)
def test_merge_commutes(x, y):
    agree(merge(parts(x), parts(y)), merge(parts(y), parts(x)))


@given(batches, batches, batches)
def test_merge_associates(x, y, z):
    a, b, c = parts(x), parts(y), parts(z)
    agree(merge(merge(a, b), c), merge(a, merge(b, c)))


@given(batches)
def test_the_empty_batch_is_the_identity(x):
    m = parts(x)
    agree(merge(m, Moments.empty(m.mean)), m)
    agree(merge(Moments.empty(m.mean), m), m)
    agree(merge(Moments.empty(m.mean), Moments.empty(m.mean)), Moments.empty(m.mean))
    agree(parts(x[:0]), Moments.empty(m.mean))


@given(st.lists(batches, min_size=1, max_size=5))
def test_any_split_gives_the_same_moments(xs):
    agree(reduce(merge, map(parts, xs)), parts(np.concatenate(xs)))


@given(st.lists(batches, min_size=1, max_size=5), st.integers(0, 4))
def test_merging_at_once_is_merging_one_by_one(xs, empty):
    found = [parts(x) for x in xs]
    nothing = np.full(2, np.nan)  # what an empty part holds must not matter
    found.insert(empty, Moments(0, nothing, nothing))
    counts = np.array([[m.count] * 2 for m in found], float)
    whole = Moments(counts, np.stack([m.mean for m in found]), np.stack([m.m2 for m in found]))
    agree(merge_stacked(whole), parts(np.concatenate(xs)))


@given(batches)
def test_variance_is_never_negative(x):
    assert (parts(x).m2 >= 0).all()
    assert (parts(x.astype(np.float32)).m2 >= 0).all()


@given(
    arrays(np.float64, (6, 2), elements=finite), arrays(np.int64, (6,), elements=st.integers(0, 3))
)
def test_integer_weights_are_repetitions(x, w):
    assume(w.sum() > 0)
    agree(moments(x, (0,), w[:, None].astype(float)), parts(np.repeat(x, w, axis=0)))


@given(
    arrays(np.float64, (6, 2), elements=finite),
    st.floats(1e-3, 1e3),
    st.floats(-1e3, 1e3),
)
def test_batch_norm_forgets_scale_and_shift(x, a, b):
    """BN(a x + b) = BN(x) for a > 0, when eps is scaled by a^2."""
    assume((x.std(0) > 1e-3).all())
    y = batch_norm_train(x).y
    other = batch_norm_train(a * x + b, spec=replace(BNKIT, eps=BNKIT.eps * a**2)).y
    # adding b rounds a x at magnitude b; the standard deviation is a * std
    slack = 1e-9 + 1e-14 * (np.abs(x).max() + abs(b) / a) / x.std(0).min() * 100
    np.testing.assert_allclose(other, y, atol=slack)


@given(arrays(np.float64, (6, 2), elements=finite), st.permutations(range(6)))
def test_permuting_the_batch_permutes_the_output(x, order):
    assume((x.std(0) > 1e-3).all())
    order = list(order)
    np.testing.assert_allclose(
        batch_norm_train(x[order]).y, batch_norm_train(x).y[order], atol=1e-9
    )


@given(arrays(np.float64, (6, 2), elements=finite), arrays(np.float64, (6, 2), elements=finite))
def test_the_gradient_is_orthogonal_to_what_batch_norm_forgets(x, g):
    """sum(dx) = 0 always; <dx, x - mean> = 0 up to the share eps / (var + eps)."""
    assume((x.std(0) > 1e-1).all())
    dx = batch_norm_backward(g, batch_norm_train(x).saved).x
    scale = 1 + np.abs(dx).sum(0)
    np.testing.assert_allclose(dx.sum(0) / scale, 0, atol=1e-9)


@given(arrays(np.float64, (5, 2), elements=finite), arrays(np.float64, (4, 2), elements=finite))
def test_inference_is_the_affine_map(x, p):
    mean, var, weight, bias = p[0], np.abs(p[1]) + 0.1, p[2], p[3]
    scale, shift = scale_shift(np, (mean, var), weight, bias, 1e-5)
    y = batch_norm_eval(x, weight, bias, RunningStats(mean, var))
    bound = 1e-12 * (1 + np.abs(scale) * (np.abs(x).max() + np.abs(mean)) + np.abs(bias))
    assert (np.abs(y - (x * scale + shift)) <= bound).all()


@pytest.mark.parametrize("axes", [None, (0,), (0, 1)])
def test_moments_over_axes(axes):
    x = np.random.default_rng(0).normal(size=(4, 5, 6))
    m = moments(x, axes)
    np.testing.assert_allclose(m.mean, x.mean(axes))
    np.testing.assert_allclose(m.var(correction=1), x.var(axes, ddof=1))

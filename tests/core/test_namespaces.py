"""NumPy, torch and array_api_strict give the same numbers."""

import numpy as np
import pytest
import torch

from bnkit.core import PRESETS, Moments, RunningStats, merge, merge_stacked, moments
from bnkit.functional import batch_norm_backward, batch_norm_eval, batch_norm_train
from tests.tolerances import FLOAT64, relative_error

rng = np.random.default_rng(0)
RUNNABLE = [k for k, p in PRESETS.items() if p.spec.update_when != "never"]


def oracle(x, weight, bias, eps, axes):
    keep = {"axis": axes, "keepdims": True}
    shape = x.mean(**keep).shape
    y = (x - x.mean(**keep)) / np.sqrt(x.var(**keep) + eps)
    return y * weight.reshape(shape) + bias.reshape(shape)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((6, 3), 1), ((6, 3), -1), ((4, 3, 5), 1), ((4, 5, 3), -1), ((2, 3, 4, 5), 1),
        ((2, 4, 5, 3), -1), ((2, 3, 2, 4, 3), 1), ((3, 4), 0), ((4, 3, 5), (1, 2)),
    ],
)  # fmt: skip
def test_layouts(space, shape, axis):
    x = rng.normal(2, 3, shape)
    channels = tuple(a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,)))
    c = tuple(shape[a] for a in channels)
    weight, bias, grad = rng.normal(size=c), rng.normal(size=c), rng.normal(size=shape)
    got = batch_norm_train(space(x), space(weight), space(bias), channel_axis=axis)
    axes = tuple(a for a in range(len(shape)) if a not in channels)
    assert relative_error(space.back(got.y), oracle(x, weight, bias, 1e-5, axes)) < FLOAT64
    assert relative_error(space.back(got.state.mean), 0.1 * x.mean(axes)) < FLOAT64
    assert relative_error(space.back(got.state.var), 0.9 + 0.1 * x.var(axes, ddof=1)) < FLOAT64
    grads = batch_norm_backward(space(grad), got.saved)
    spread = tuple(shape[a] if a in channels else 1 for a in range(len(shape)))
    leaves = [torch.tensor(v, requires_grad=True) for v in (x, weight, bias)]
    mean = leaves[0].mean(axes, keepdim=True)
    var = (leaves[0] - mean).square().mean(axes, keepdim=True)
    y = (leaves[0] - mean) / (var + 1e-5).sqrt()
    y = y * leaves[1].reshape(spread) + leaves[2].reshape(spread)
    expected = torch.autograd.grad(y, leaves, torch.tensor(grad))
    for a, b in zip(grads, expected, strict=True):
        assert relative_error(space.back(a), b) < 1e-9


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_preset_agrees_with_numpy(space, name):
    spec = PRESETS[name].spec
    shape = (4, 3, 5, 6)
    x = rng.normal(1, 2, shape)
    c = shape[spec.channel_axis]
    weight, bias, mean = rng.normal(size=(3, c))
    stats = RunningStats(mean, rng.uniform(0.5, 2, c), 3, 0.3)
    given = RunningStats(space(stats.mean), space(stats.var), 3, 0.3)
    a = batch_norm_train(x, weight, bias, stats, spec)
    b = batch_norm_train(space(x), space(weight), space(bias), given, spec)
    assert relative_error(space.back(b.y), a.y) < FLOAT64
    assert relative_error(space.back(b.state.var), a.state.var) < FLOAT64
    y = batch_norm_eval(space(x), space(weight), space(bias), given, spec)
    assert relative_error(space.back(y), batch_norm_eval(x, weight, bias, stats, spec)) < FLOAT64
    g = rng.normal(size=shape)
    for p, q in zip(
        batch_norm_backward(space(g), b.saved), batch_norm_backward(g, a.saved), strict=True
    ):
        assert relative_error(space.back(p), q) < FLOAT64


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("axes", [(0,), (0, 2, 3)])
def test_float32_moments(space, mean, axes):
    """Both the inner and the outer axis: NumPy adds naively along one of them."""
    shape = (200_000, 3) if axes == (0,) else (64, 3, 40, 40)
    x = (rng.normal(size=shape) + mean).astype(np.float32)
    got = moments(space(x), axes)
    wide = x.astype(np.float64)
    assert relative_error(space.back(got.var()), wide.var(axes)) < 1e-5
    # one unit in the last place of the values, whose size is that of the mean or deviation
    assert np.abs(space.back(got.mean) - wide.mean(axes)).max() <= 2**-23 * max(mean, 1.0)


def test_what_rounding_leaves_in_the_mean_is_taken_back():
    """At mean 1e4 a float32 mean is off by up to 5e-4, whose square shows in a variance of 4e-4."""
    from array_api_compat import torch as torch_compat

    x = (1e4 + 0.02 * rng.normal(size=(4096, 3))).astype(np.float32)
    x -= np.float32(0.00037)
    got = moments(torch.tensor(x), (0,), xp=torch_compat)
    exact = x.astype(np.float64)
    assert relative_error(got.m2, ((exact - exact.mean(0)) ** 2).sum(0)) < 1e-4


def test_half_precision_is_computed_in_float32():
    x = rng.normal(3, 1, (64, 3)).astype(np.float16)
    got = batch_norm_train(x)
    assert got.y.dtype == np.float16
    assert got.state.mean.dtype == np.float32
    assert relative_error(got.state.mean, 0.1 * x.astype(np.float64).mean(0)) < 1e-6


def test_merge_keeps_the_namespace(space):
    a, b = (moments(space(rng.normal(size=(4, 3))), (0,)) for _ in range(2))
    assert type(merge(a, b).mean) is type(a.mean)
    both = [
        space(np.stack([space.back(v), space.back(w)])) for v, w in zip(a[1:], b[1:], strict=True)
    ]
    stacked = merge_stacked(Moments(space(np.full((2, 3), 4.0)), *both))
    assert type(stacked.mean) is type(a.mean)
    assert relative_error(space.back(stacked.m2), space.back(merge(a, b).m2)) < FLOAT64

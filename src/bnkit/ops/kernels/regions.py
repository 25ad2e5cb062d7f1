"""What every thread of a parallel region does: one region for a whole batch norm.

A region reads its description: addresses (0 for what is not given), sizes, and two float64
numbers at the end. Planes are shared out by channels. Rows are shared out by rows; what the
threads found meets in `partial` at a barrier, and each of them merges all of it.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from bnkit.ops.kernels.averaging import averaging
from bnkit.ops.kernels.columns import (
    add_columns,
    channel_moments,
    channels_backward,
    channels_forward,
    channels_sums,
    copy,
    merge_moments,
    room,
)
from bnkit.ops.kernels.compiled import compiled, specialized
from bnkit.ops.kernels.openmp import Region, layout, pointer, region, wait_for_all
from bnkit.ops.kernels.planes import (
    planes_backward,
    planes_forward,
    planes_moments,
    planes_sums,
    scale_and_shift,
)

# what these names mean is set anew for each variant of a region: `specialized`
stored: Any = None
dtype: Any = None
residual: Any = None
planes: Any = None
rows: Any = None
plane_sums: Any = None
row_sums: Any = None
average: Any = None

# A block of planes is read twice and should stay in a core's share of the caches (bytes).
_IN_CACHE = 2 << 20

MOMENTS = layout(7, 0)
"""x, statistics, partial; n, c, s, by rows."""
TRAIN = layout(16, 3)
"""x, added, y, weight, bias, statistics, partial; n, c, s, by rows; running mean and variance,
counters of batches and of those left out, skip; eps, slope, weight of the batch."""
EVALUATE = layout(11, 2)
"""x, added, y, weight, bias, mean, var; n, c, s, by rows; eps, slope."""
BACKWARD = layout(16, 2)
"""grad, x, added, grad_x, grad_added, weight, bias, mean, m2, by_weight_and_bias, partial;
n, c, s, by rows, frozen; eps, slope."""


@compiled
def share(count: int, part: int, parts: int) -> Any:
    """First and past the last piece of one thread."""
    return count * part // parts, count * (part + 1) // parts


@compiled
def in_cache(n: int, s: int, size: int) -> int:
    """How many channels to work through together."""
    return max(1, _IN_CACHE // (n * s * size))


@compiled
def parts_of(address: int, parts: int, c: int) -> Any:
    """Where the threads leave what they found; a thread alone needs no common place."""
    if address:
        return carray(pointer(address), (parts, 2, c), np.float64)
    return np.empty((1, 2, c), np.float64)


@compiled
def merged(partial: Any, m: int, parts: int) -> Any:
    """Mean and m2, shape (2, c), of m rows that were shared out."""
    counts = np.empty(parts, np.float64)
    for i in range(parts):
        first, last = share(m, i, parts)
        counts[i] = last - first
    whole = np.empty((2, partial.shape[2]), np.float64)
    merge_moments(partial, counts, whole)
    return whole


def _run_train(a: Any, part: int, parts: int) -> None:
    n, c, s = a[7], a[8], a[9]
    x = carray(pointer(a[0]), n * c * s, stored)
    added = carray(pointer(a[1]), n * c * s if residual else 0, stored)
    y = carray(pointer(a[2]), n * c * s, stored)
    weight = carray(pointer(a[3]), c if a[3] else 0, dtype)
    bias = carray(pointer(a[4]), c if a[4] else 0, dtype)
    statistics = carray(pointer(a[5]), (2, c), dtype)
    numbers = a[16:19].view(np.float64)
    eps, slope = numbers[0], dtype(numbers[1])
    affine = room(3, c, np.empty(0, dtype))
    if a[10]:
        first, last = share(n * s, part, parts)
        partial = parts_of(a[6], parts, c)
        channel_moments(x[first * c : last * c], c, affine, partial[part])
        wait_for_all()
        whole = merged(partial, n * s, parts)
        scale_and_shift((0, c), n * s, eps, (weight, bias, whole[0], whole[1]), affine)
        if part == 0:
            copy(whole, 0, statistics)
            if a[11]:
                average(a, 11, numbers[2], (statistics[0], statistics[1]), n * s)
        rows(x, added, y, (first, last), c, affine, slope)
        return
    mean, m2 = np.empty(c, np.float64), np.empty(c, np.float64)
    begin, end = share(c, part, parts)
    block = in_cache(n, s, x.itemsize)
    for first in range(begin, end, block):
        channels = (first, min(first + block, end))
        planes_moments(x, (n, c, s), channels, mean, m2, affine[0])
        scale_and_shift(channels, n * s, eps, (weight, bias, mean, m2), affine)
        planes(x, added, y, (n, c, s), channels, affine, slope)
        for ch in range(channels[0], channels[1]):
            statistics[0, ch] = mean[ch]
            statistics[1, ch] = m2[ch]
    if a[11]:
        wait_for_all()
        if part == 0:
            average(a, 11, numbers[2], (statistics[0], statistics[1]), n * s)


@cache
def train_region(stored: Any, dtype: Any, act: str, residual: bool) -> Region:  # noqa: FBT001
    """Training forward, described by `TRAIN`: writes `y` and `statistics`, averages."""
    return region(
        specialized(
            _run_train,
            stored=stored,
            dtype=dtype,
            act=act,
            residual=residual,
            planes=planes_forward(act, residual),
            rows=channels_forward(act, residual),
            average=averaging(dtype),
        )
    )


def _run_moments(a: Any, part: int, parts: int) -> None:
    n, c, s = a[3], a[4], a[5]
    x = carray(pointer(a[0]), n * c * s, stored)
    statistics = carray(pointer(a[1]), (2, c), np.float64)
    like = np.empty(0, dtype)
    if a[6]:
        first, last = share(n * s, part, parts)
        partial = parts_of(a[2], parts, c)
        channel_moments(x[first * c : last * c], c, like, partial[part])
        wait_for_all()
        if part == 0:
            copy(merged(partial, n * s, parts), 0, statistics)
        return
    channels = share(c, part, parts)
    centers = np.empty(c, dtype)
    planes_moments(x, (n, c, s), channels, statistics[0], statistics[1], centers)


@cache
def moments_region(stored: Any, dtype: Any) -> Region:
    """Mean and m2 (float64) of each channel, described by `MOMENTS`."""
    return region(specialized(_run_moments, stored=stored, dtype=dtype))


def _run_evaluate(a: Any, part: int, parts: int) -> None:
    n, c, s = a[7], a[8], a[9]
    x = carray(pointer(a[0]), n * c * s, stored)
    added = carray(pointer(a[1]), n * c * s if residual else 0, stored)
    y = carray(pointer(a[2]), n * c * s, stored)
    weight = carray(pointer(a[3]), c if a[3] else 0, dtype)
    bias = carray(pointer(a[4]), c if a[4] else 0, dtype)
    mean = carray(pointer(a[5]), c, dtype)
    var = carray(pointer(a[6]), c, dtype)
    numbers = a[11:13].view(np.float64)
    eps, slope = numbers[0], dtype(numbers[1])
    affine = room(3, c, np.empty(0, dtype))
    if not a[10]:
        channels = share(c, part, parts)
        scale_and_shift(channels, 1, eps, (weight, bias, mean, var), affine)
        planes(x, added, y, (n, c, s), channels, affine, slope)
        return
    scale_and_shift((0, c), 1, eps, (weight, bias, mean, var), affine)
    rows(x, added, y, share(n * s, part, parts), c, affine, slope)


@cache
def evaluate_region(stored: Any, dtype: Any, act: str, residual: bool) -> Region:  # noqa: FBT001
    """Inference forward, described by `EVALUATE`; `y` is written."""
    return region(
        specialized(
            _run_evaluate,
            stored=stored,
            dtype=dtype,
            act=act,
            residual=residual,
            planes=planes_forward(act, residual),
            rows=channels_forward(act, residual),
        )
    )


@compiled
def lines(channels: Any, values: int, found: Any, invstd: Any, affine: Any) -> None:
    """Rows 3 and 4 of `affine`; the first row of `found` becomes the sum of g * xhat.

    Statistics that are constants have no `values` behind them: 0, and both rows are 0.
    """
    for ch in range(channels[0], channels[1]):
        found[0, ch] *= invstd[ch]
        factor = affine[1, ch] / values if values else 0.0
        affine[3, ch] = -factor * invstd[ch] * found[0, ch]
        affine[4, ch] = -factor * found[1, ch]


def _run_backward(a: Any, part: int, parts: int) -> None:
    n, c, s = a[11], a[12], a[13]
    grad = carray(pointer(a[0]), n * c * s, stored)
    x = carray(pointer(a[1]), n * c * s, stored)
    added = carray(pointer(a[2]), n * c * s if residual else 0, stored)
    grad_x = carray(pointer(a[3]), n * c * s, stored)
    grad_added = carray(pointer(a[4]), n * c * s if residual else 0, stored)
    weight = carray(pointer(a[5]), c if a[5] else 0, dtype)
    bias = carray(pointer(a[6]), c if a[6] else 0, dtype)
    mean = carray(pointer(a[7]), c, dtype)
    m2 = carray(pointer(a[8]), c, dtype)
    by_parameters = carray(pointer(a[9]), (2, c), dtype)
    numbers = a[16:18].view(np.float64)
    eps, slope = numbers[0], dtype(numbers[1])
    m = n * s
    affine = room(5, c, np.empty(0, dtype))
    invstd = np.empty(c, np.float64)
    for ch in range(c):
        invstd[ch] = 1.0 / math.sqrt(m2[ch] / m + eps)
    scale_and_shift((0, c), m, eps, (weight, bias, mean, m2), affine)
    if a[14]:
        mine = share(m, part, parts)
        partial = parts_of(a[10], parts, c)
        row_sums(grad, x, added, mine, affine, partial[part], slope)
        wait_for_all()
        found = np.zeros((2, c), np.float64)
        for i in range(parts):
            add_columns(partial[i], found)
        lines((0, c), 0 if a[15] else m, found, invstd, affine)
        if part == 0:
            copy(found, 0, by_parameters)
        rows(grad, x, added, (grad_x, grad_added), mine, c, affine, slope)
        return
    found = np.empty((2, c), np.float64)
    begin, end = share(c, part, parts)
    block = in_cache(2 * n, s, x.itemsize)
    for start in range(begin, end, block):
        channels = (start, min(start + block, end))
        plane_sums(grad, x, added, (n, c, s), channels, affine, found, slope)
        lines(channels, 0 if a[15] else m, found, invstd, affine)
        planes(grad, x, added, (grad_x, grad_added), (n, c, s), channels, affine, slope)
        for ch in range(channels[0], channels[1]):
            by_parameters[0, ch] = found[0, ch]
            by_parameters[1, ch] = found[1, ch]


@cache
def backward_region(stored: Any, dtype: Any, act: str, residual: bool) -> Region:  # noqa: FBT001
    """Gradients, described by `BACKWARD`; the three gradients are written."""
    return region(
        specialized(
            _run_backward,
            stored=stored,
            dtype=dtype,
            act=act,
            residual=residual,
            planes=planes_backward(act, residual),
            rows=channels_backward(act, residual),
            plane_sums=planes_sums(act, residual),
            row_sums=channels_sums(act, residual),
        )
    )

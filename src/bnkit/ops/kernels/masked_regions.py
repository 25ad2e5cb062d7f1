"""What every thread does for a batch of which only some positions count.

As in `regions`, with one description for each direction. Planes are shared out by channels; of
rows, those that count and the others are shared out separately.
"""

import math
from functools import cache
from typing import Any, Literal

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from bnkit.ops.kernels.columns import add_columns, copy, room
from bnkit.ops.kernels.compiled import compiled, specialized
from bnkit.ops.kernels.masked_planes import (
    find_hulls,
    masked_planes_backward,
    masked_planes_forward,
    masked_planes_moments,
    masked_planes_sums,
)
from bnkit.ops.kernels.masked_rows import (
    clear_rows,
    masked_rows_backward,
    masked_rows_forward,
    masked_rows_moments,
    masked_rows_sums,
    order_rows,
)
from bnkit.ops.kernels.openmp import Region, layout, pointer, region, wait_for_all
from bnkit.ops.kernels.planes import scale_and_shift
from bnkit.ops.kernels.regions import in_cache, lines, merged, parts_of, share

# what these names mean is set anew for each variant of a region: `specialized`
stored: Any = None
dtype: Any = None
rows: Any = None
holes: Any = None
moments: Any = None
forward: Any = None
sums: Any = None
backward: Any = None

# rows of which some count; planes of which something does not, or nothing, within the hulls
Kind = Literal["rows", "holes", "hulls"]

LOOK = layout(7, 0)
"""mask, a byte for each position; index, hulls and whether there are holes; n, s, kept."""
TRAIN = layout(12, 1)
"""x, y, weight, bias, statistics, partial, index or there, hulls; n, c, s, kept; eps."""
BACKWARD = layout(14, 1)
"""grad, x, grad_x, weight, mean, m2, by_weight_and_bias, partial, index or there, hulls;
n, c, s, kept; eps."""


def _run_look(a: Any, part: int, parts: int) -> None:  # noqa: ARG001  the form of a region
    n, s = a[4], a[5]
    mask = carray(pointer(a[0]), n * s, np.uint8)
    if a[1]:
        order_rows(mask, a[6], carray(pointer(a[1]), n * s, np.int64))
        return
    holed = carray(pointer(a[3]), 1, np.int64)
    holed[0] = find_hulls(mask, s, carray(pointer(a[2]), (n, 2), np.int64))


@cache
def look_region() -> Region:
    """What a mask is, described by `LOOK`: writes `index`, or else `hulls` and `holes`."""
    return region(specialized(_run_look))


@compiled
def _rest(index: Any, kept: int, part: int, parts: int) -> Any:
    """The rows that do not count, of one thread."""
    first, last = share(index.size - kept, part, parts)
    return index[kept + first : kept + last]


def _run_train(a: Any, part: int, parts: int) -> None:
    n, c, s, kept = a[8], a[9], a[10], a[11]
    x = carray(pointer(a[0]), n * c * s, stored)
    y = carray(pointer(a[1]), n * c * s, stored)
    weight = carray(pointer(a[2]), c if a[2] else 0, dtype)
    bias = carray(pointer(a[3]), c if a[3] else 0, dtype)
    statistics = carray(pointer(a[4]), (2, c), dtype)
    eps = a[12:13].view(np.float64)[0]
    affine = room(3, c, np.empty(0, dtype))
    if rows:
        index = carray(pointer(a[6]), n * s, np.int64)
        first, last = share(kept, part, parts)
        mine = index[first:last]
        partial = parts_of(a[5], parts, c)
        table = room(2, c, partial).ravel()
        masked_rows_moments(x, mine, partial[part], affine[0], table)
        wait_for_all()
        whole = merged(partial, kept, parts)
        scale_and_shift((0, c), kept, eps, (weight, bias, whole[0], whole[1]), affine)
        if part == 0:
            copy(whole, 0, statistics)
        masked_rows_forward(x, y, mine, c, affine)
        clear_rows(y, _rest(index, kept, part, parts), c)
        return
    there = carray(pointer(a[6]), n * s if holes else 0, dtype)
    hulls = carray(pointer(a[7]), (n, 2), np.int64)
    mean, m2 = np.empty(c, np.float64), np.empty(c, np.float64)
    begin, end = share(c, part, parts)
    block = in_cache(n, s, x.itemsize)
    for first in range(begin, end, block):
        channels = (first, min(first + block, end))
        moments(x, there, hulls, (n, c, s), channels, (mean, m2), affine[0])
        scale_and_shift(channels, kept, eps, (weight, bias, mean, m2), affine)
        forward(x, there, hulls, y, (n, c, s), channels, affine)
        for ch in range(channels[0], channels[1]):
            statistics[0, ch] = mean[ch]
            statistics[1, ch] = m2[ch]


@cache
def train_region(stored: Any, dtype: Any, kind: Kind) -> Region:
    """Training forward, described by `TRAIN`: writes `y` and `statistics`."""
    holes = kind == "holes"
    return region(
        specialized(
            _run_train,
            stored=stored,
            dtype=dtype,
            rows=kind == "rows",
            holes=holes,
            moments=masked_planes_moments(holes=holes),
            forward=masked_planes_forward(holes=holes),
        )
    )


def _run_backward(a: Any, part: int, parts: int) -> None:
    n, c, s, kept = a[10], a[11], a[12], a[13]
    grad = carray(pointer(a[0]), n * c * s, stored)
    x = carray(pointer(a[1]), n * c * s, stored)
    grad_x = carray(pointer(a[2]), n * c * s, stored)
    weight = carray(pointer(a[3]), c if a[3] else 0, dtype)
    mean = carray(pointer(a[4]), c, dtype)
    m2 = carray(pointer(a[5]), c, dtype)
    by_parameters = carray(pointer(a[6]), (2, c), dtype)
    eps = a[14:15].view(np.float64)[0]
    affine = room(5, c, np.empty(0, dtype))
    invstd = np.empty(c, np.float64)
    for ch in range(c):
        invstd[ch] = 1.0 / math.sqrt(m2[ch] / kept + eps)
    scale_and_shift((0, c), kept, eps, (weight, weight[:0], mean, m2), affine)
    if rows:
        index = carray(pointer(a[8]), n * s, np.int64)
        first, last = share(kept, part, parts)
        mine = index[first:last]
        partial = parts_of(a[7], parts, c)
        table = room(2, c, partial).ravel()
        masked_rows_sums(grad, x, mine, affine[0], partial[part], table)
        wait_for_all()
        found = np.zeros((2, c), np.float64)
        for i in range(parts):
            add_columns(partial[i], found)
        lines((0, c), kept, found, invstd, affine)
        if part == 0:
            copy(found, 0, by_parameters)
        masked_rows_backward(grad, x, grad_x, mine, c, affine)
        clear_rows(grad_x, _rest(index, kept, part, parts), c)
        return
    there = carray(pointer(a[8]), n * s if holes else 0, dtype)
    hulls = carray(pointer(a[9]), (n, 2), np.int64)
    found = np.empty((2, c), np.float64)
    begin, end = share(c, part, parts)
    block = in_cache(2 * n, s, x.itemsize)
    for start in range(begin, end, block):
        channels = (start, min(start + block, end))
        sums(grad, x, there, hulls, (n, c, s), channels, affine, found)
        lines(channels, kept, found, invstd, affine)
        backward(grad, x, there, hulls, grad_x, (n, c, s), channels, affine)
        for ch in range(channels[0], channels[1]):
            by_parameters[0, ch] = found[0, ch]
            by_parameters[1, ch] = found[1, ch]


@cache
def backward_region(stored: Any, dtype: Any, kind: Kind) -> Region:
    """Gradients, described by `BACKWARD`: writes `grad_x` and `by_weight_and_bias`."""
    holes = kind == "holes"
    return region(
        specialized(
            _run_backward,
            stored=stored,
            dtype=dtype,
            rows=kind == "rows",
            holes=holes,
            sums=masked_planes_sums(holes=holes),
            backward=masked_planes_backward(holes=holes),
        )
    )

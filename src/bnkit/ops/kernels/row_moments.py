"""Mean and m2 of rows of channels.

Deviations from a center are summed over blocks of rows, once themselves and once squared: a few
terms in the precision of x, the rest in double precision, in which blocks are merged too (theory
page, equation 9). The center is near the mean so far, and near that of the first rows at the
start. One far from its block costs no digits of the result: the distance is then part of the
variance itself.
"""

from typing import Any

from bnkit.ops.kernels.centers import center_near
from bnkit.ops.kernels.compiled import compiled
from bnkit.ops.kernels.streams import run_of
from bnkit.ops.kernels.vector import (
    accumulate,
    fma,
    lanes,
    load,
    load_part,
    number,
    spread,
    widen,
)

# Rows read side by side.
_TOGETHER = 16


@compiled
def _add_deviations(x: Any, base: int, shape: Any, center: Any, sums: Any) -> None:
    """Add x - center and its square over a few rows to float64 sums.

    The shape is the number of rows, their width, and how far apart they begin.

    Four terms at most are added in the precision of x before they enter the first sum: the mean
    is then as good as float32 can store it.
    """
    rows, width, jump = shape
    size, room = lanes(x), center.size
    zero = spread(number(x, 0))
    k = 0
    while k + size <= width:
        c, a, q = load(center, k), zero, zero
        if rows == _TOGETHER:  # a count that the compiler knows
            wide = widen(zero)
            for first in range(0, _TOGETHER, 8):
                a, b = zero, zero
                for i in range(first, first + 4):
                    d = load(x, base + i * jump + k) - c
                    a, q = a + d, fma(d, d, q)
                for i in range(first + 4, first + 8):
                    d = load(x, base + i * jump + k) - c
                    b, q = b + d, fma(d, d, q)
                wide += widen(a) + widen(b)
            accumulate(sums, k, wide)
        else:
            for i in range(rows):
                d = load(x, base + i * jump + k) - c
                a, q = a + d, fma(d, d, q)
            accumulate(sums, k, a)
        accumulate(sums, room + k, q)
        k += size
    if k < width:
        c, a, q = load(center, k), zero, zero
        for i in range(rows):
            d = load_part(x, base + i * jump + k, width - k) - c
            a, q = a + d, fma(d, d, q)
        accumulate(sums, k, a)
        accumulate(sums, room + k, q)


@compiled
def _block_deviations(x: Any, rows: Any, width: int, center: Any, sums: Any) -> int:
    """The sums over a block of the rows from the first to the last; how many it took."""
    first, last = rows
    for k in range(sums.size):
        sums[k] = 0
    if last - first < _TOGETHER:
        _add_deviations(x, first * width, (last - first, width, width), center, sums)
        return last - first
    run = run_of(last - first, width, _TOGETHER)
    for r in range(first, first + run):
        _add_deviations(x, r * width, (_TOGETHER, width, run * width), center, sums)
    return _TOGETHER * run


@compiled
def rows_moments(x: Any, rows: int, found: Any, center: Any, sums: Any) -> None:
    """Mean and m2 (float64) of the columns of a number of rows.

    Args:
        x: Flat values; a row has as many as `found`.
        rows: How many.
        found: Shape (2, width); written.
        center: Room for a row of whole vectors, in the precision of the computation.
        sums: Room for two of them, float64.
    """
    width, room = found.shape[1], center.size
    for k in range(room):
        center[k] = 0
    for k in range(width):
        found[0, k] = 0.0
        found[1, k] = 0.0
    count = 0.0
    first, last = 0, min(_TOGETHER, rows)
    centered = False
    while first < rows:
        n = _block_deviations(x, (first, last), width, center, sums)
        inverse, share = 1.0 / n, n / (count + n)
        if centered:
            for k in range(width):
                a, q = sums[k], sums[room + k]
                left = a * inverse
                delta = center[k] + left - found[0, k]
                found[0, k] += delta * share
                found[1, k] += (q - a * left) + delta * delta * (count * share)
                center[k] = center_near(x, found[0, k], found[1, k] / (count + n))
            count += n
            first += n
        else:
            for k in range(width):
                a, q = sums[k], sums[room + k]
                center[k] = center_near(x, a * inverse, (q - a * (a * inverse)) * inverse)
            centered, last = True, rows

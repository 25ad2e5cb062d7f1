"""Loops over rows of channels, `(m, c)`, of which only some count.

`index` lists the rows that count, and behind them the others. Rows that count are read by their
number, several side by side; what stands in the others is not read, and 0 is written there. Sums,
centers and blocks are those of `rows`.
"""

from typing import Any

from bnkit.ops.kernels.centers import center_near
from bnkit.ops.kernels.compiled import compiled
from bnkit.ops.kernels.vector import (
    accumulate,
    fma,
    lanes,
    load,
    load_part,
    number,
    spread,
    store,
    store_part,
    widen,
)

# as in `rows`
_BLOCK = 128
_TOGETHER = 16
_FEW = 4


@compiled
def order_rows(mask: Any, kept: int, index: Any) -> None:
    """Numbers of the rows that count, then those of the others, each in order.

    Args:
        mask: One byte for each row; 0 = does not count.
        kept: How many count.
        index: Written.
    """
    there, rest = 0, kept
    for r in range(mask.size):
        if mask[r]:
            index[there] = r
            there += 1
        else:
            index[rest] = r
            rest += 1


@compiled
def _add_deviations(x: Any, index: Any, rows: Any, width: int, center: Any, sums: Any) -> None:
    """Add x - center and its square over a few rows to float64 sums, one after the other.

    Four terms at most are added in the precision of x before they enter the first sum.
    """
    first, last = rows
    size, room = lanes(x), center.size
    zero = spread(number(x, 0))
    k = 0
    while k + size <= width:
        c, q, wide = load(center, k), zero, widen(zero)
        r = first
        while r + _FEW <= last:
            a = zero
            for i in range(_FEW):
                d = load(x, index[r + i] * width + k) - c
                a, q = a + d, fma(d, d, q)
            wide += widen(a)
            r += _FEW
        a = zero
        while r < last:
            d = load(x, index[r] * width + k) - c
            a, q = a + d, fma(d, d, q)
            r += 1
        accumulate(sums, k, wide + widen(a))
        accumulate(sums, room + k, q)
        k += size
    if k < width:
        c, a, q = load(center, k), zero, zero
        for r in range(first, last):
            d = load_part(x, index[r] * width + k, width - k) - c
            a, q = a + d, fma(d, d, q)
        accumulate(sums, k, a)
        accumulate(sums, room + k, q)


@compiled
def masked_rows_moments(x: Any, index: Any, found: Any, center: Any, sums: Any) -> None:
    """Mean and m2 (float64) of the columns of some rows.

    Args:
        x: Flat values; a row has as many as `found`.
        index: Numbers of the rows.
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
    count, first = 0.0, 0
    centered = False
    while first < index.size:
        last = min(first + (_BLOCK if centered else _TOGETHER), index.size)
        for k in range(sums.size):
            sums[k] = 0
        for r in range(first, last, _TOGETHER):
            _add_deviations(x, index, (r, min(r + _TOGETHER, last)), width, center, sums)
        n = last - first
        for k in range(width):
            a, q = sums[k], sums[room + k]
            left = a / n
            if not centered:  # around 0: only good for a center
                center[k] = center_near(x, left, (q - a * left) / n)
                continue
            delta = center[k] + left - found[0, k]
            found[0, k] += delta * (n / (count + n))
            found[1, k] += (q - a * left) + delta * delta * (count * n / (count + n))
            center[k] = center_near(x, found[0, k], found[1, k] / (count + n))
        if centered:
            count += n
            first = last
        centered = True


@compiled
def _write_forward(x: Any, y: Any, index: Any, rows: Any, shape: Any, affine: Any) -> None:
    first, count = rows
    width, stride = shape
    size = lanes(x)
    k = 0
    while k < width:
        left = width - k
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        for i in range(count):
            at = index[first + i] * width + k
            if left >= size:
                store(y, at, fma(load(x, at) - m, w, b))
            else:
                store_part(y, at, fma(load_part(x, at, left) - m, w, b), left)
        k += size


@compiled
def masked_rows_forward(x: Any, y: Any, index: Any, width: int, affine: Any) -> None:
    """`y = (x - mean) * scale + shift` for some rows.

    Args:
        x: Flat values.
        y: Written.
        index: Numbers of the rows.
        width: Values of a row.
        affine: Rows mean, scale and shift, with room for whole vectors.
    """
    shape, flat = (width, affine.shape[1]), affine.ravel()
    whole = index.size // _FEW * _FEW
    for r in range(0, whole, _FEW):
        _write_forward(x, y, index, (r, _FEW), shape, flat)
    for r in range(whole, index.size):
        _write_forward(x, y, index, (r, 1), shape, flat)


@compiled
def clear_rows(y: Any, index: Any, width: int) -> None:
    """Write 0 to some rows."""
    for i in range(index.size):
        at = index[i] * width
        for k in range(at, at + width):
            y[k] = 0


@compiled
def _add_products(
    grad: Any, x: Any, index: Any, rows: Any, width: int, mean: Any, sums: Any
) -> None:
    first, count = rows
    size, room = lanes(x), sums.size // 2
    zero = spread(number(x, 0))
    k = 0
    while k < width:
        left = width - k
        m, p, q = load(mean, k), zero, zero
        for i in range(count):
            at = index[first + i] * width + k
            if left >= size:
                g, d = load(grad, at), load(x, at) - m
            else:
                g, d = load_part(grad, at, left), load_part(x, at, left) - m
            p, q = fma(g, d, p), q + g
        accumulate(sums, k, p)
        accumulate(sums, room + k, q)
        k += size


@compiled
def masked_rows_sums(grad: Any, x: Any, index: Any, mean: Any, found: Any, sums: Any) -> None:
    """The sums of the backward pass over some rows.

    Args:
        grad: Flat gradient of the output.
        x: Flat values; a row has as many as `found`.
        index: Numbers of the rows.
        mean: Of each column, with room for whole vectors.
        found: Float64; its rows become the sums of grad * (x - mean) and of grad.
        sums: Room for two rows of whole vectors, float64.
    """
    width, room = found.shape[1], sums.size // 2
    for k in range(sums.size):
        sums[k] = 0
    whole = index.size // _FEW * _FEW
    for r in range(0, whole, _FEW):
        _add_products(grad, x, index, (r, _FEW), width, mean, sums)
    for r in range(whole, index.size):
        _add_products(grad, x, index, (r, 1), width, mean, sums)
    for k in range(width):
        found[0, k] = sums[k]
        found[1, k] = sums[room + k]


@compiled
def _write_backward(
    grad: Any, x: Any, grad_x: Any, index: Any, rows: Any, shape: Any, affine: Any
) -> None:
    first, count = rows
    width, stride = shape
    size = lanes(x)
    k = 0
    while k < width:
        left = width - k
        m, w = load(affine, k), load(affine, stride + k)
        along, level = load(affine, 3 * stride + k), load(affine, 4 * stride + k)
        for i in range(count):
            at = index[first + i] * width + k
            if left >= size:
                store(grad_x, at, fma(load(grad, at), w, fma(load(x, at) - m, along, level)))
            else:
                d = load_part(x, at, left) - m
                g = fma(load_part(grad, at, left), w, fma(d, along, level))
                store_part(grad_x, at, g, left)
        k += size


@compiled
def masked_rows_backward(
    grad: Any, x: Any, grad_x: Any, index: Any, width: int, affine: Any
) -> None:
    """Gradient by x for some rows.

    Args:
        grad: Flat gradient of the output.
        x: Flat values.
        grad_x: Written.
        index: Numbers of the rows.
        width: Values of a row.
        affine: Rows 0, 1, 3 and 4 are mean, scale, factor of x - mean, and constant, with room
            for whole vectors.
    """
    shape, flat = (width, affine.shape[1]), affine.ravel()
    whole = index.size // _FEW * _FEW
    for r in range(0, whole, _FEW):
        _write_backward(grad, x, grad_x, index, (r, _FEW), shape, flat)
    for r in range(whole, index.size):
        _write_backward(grad, x, grad_x, index, (r, 1), shape, flat)

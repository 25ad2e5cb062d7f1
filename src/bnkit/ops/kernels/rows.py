"""Loops over rows of channels: `(m, c)` with contiguous rows, as NHWC, NLC and `(N, C)` are.

Deviations from a center are summed over blocks of rows, once themselves and once squared: a few
terms in the precision of x, the rest in double precision, in which blocks are merged too (theory
page, equation 9). The center is near the mean so far, and near that of the first rows at the
start. One far from its block costs no digits of the result: the distance is then part of the
variance itself.

Several rows are read side by side, so that a sum is loaded and stored once for all of them.
"""

from functools import cache
from typing import Any

from bnkit.ops.kernels.activations import activate, through
from bnkit.ops.kernels.centers import center_near
from bnkit.ops.kernels.compiled import compiled, specialized
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

# Rows summed around one center.
_BLOCK = 128
# Rows read side by side: by the moments, and by the sums of the backward pass.
_TOGETHER = 16
_SUMMED = 4
# Rows written side by side, and how many values apart: the prefetchers follow few long streams
# better than many short ones. An odd number of rows apart, so that the streams do not fall on the
# same lines of the cache.
_WRITTEN = 4
_RUN = 4096

# what these names mean is set anew for each variant of a loop: `specialized`
residual: Any = None
forward: Any = None
carry: Any = None
add: Any = None
write: Any = None


@compiled
def _add_deviations(x: Any, base: int, rows: int, width: int, center: Any, sums: Any) -> None:
    """Add x - center and its square over a few rows to float64 sums, one after the other.

    Four terms at most are added in the precision of x before they enter the first sum: the mean
    is then as good as float32 can store it.
    """
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
                    d = load(x, base + i * width + k) - c
                    a, q = a + d, fma(d, d, q)
                for i in range(first + 4, first + 8):
                    d = load(x, base + i * width + k) - c
                    b, q = b + d, fma(d, d, q)
                wide += widen(a) + widen(b)
            accumulate(sums, k, wide)
        else:
            for i in range(rows):
                d = load(x, base + i * width + k) - c
                a, q = a + d, fma(d, d, q)
            accumulate(sums, k, a)
        accumulate(sums, room + k, q)
        k += size
    if k < width:
        c, a, q = load(center, k), zero, zero
        for i in range(rows):
            d = load_part(x, base + i * width + k, width - k) - c
            a, q = a + d, fma(d, d, q)
        accumulate(sums, k, a)
        accumulate(sums, room + k, q)


@compiled
def _block_deviations(x: Any, rows: Any, width: int, center: Any, sums: Any) -> None:
    first, last = rows
    for k in range(sums.size):
        sums[k] = 0
    for r in range(first, last, _TOGETHER):
        _add_deviations(x, r * width, min(_TOGETHER, last - r), width, center, sums)


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
        _block_deviations(x, (first, last), width, center, sums)
        n = last - first
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
            first = last
        else:
            for k in range(width):
                a, q = sums[k], sums[room + k]
                center[k] = center_near(x, a * inverse, (q - a * (a * inverse)) * inverse)
            centered = True
        last = min(first + _BLOCK, rows)


def _run_write_forward(
    x: Any, added: Any, y: Any, base: int, shape: Any, affine: Any, slope: Any
) -> None:
    rows, width, stride, jump = shape
    size = lanes(x)
    steep = spread(slope)
    k = 0
    while k + size <= width:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        for i in range(rows):
            at = base + i * jump + k
            z = fma(load(x, at) - m, w, b)
            if residual:
                z += load(added, at)
            store(y, at, forward(x, z, steep))
        k += size
    left = width - k
    if left:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        for i in range(rows):
            at = base + i * jump + k
            z = fma(load_part(x, at, left) - m, w, b)
            if residual:
                z += load_part(added, at, left)
            store_part(y, at, forward(x, z, steep), left)


def _rows_forward(
    x: Any, added: Any, y: Any, rows: int, width: int, affine: Any, slope: Any
) -> None:
    stride, flat = affine.shape[1], affine.ravel()
    run = max(1, (min(_RUN // width, rows // _WRITTEN) - 1) | 1)
    whole = rows // (_WRITTEN * run) * run
    for r in range(whole):
        at = (r // run * _WRITTEN * run + r % run) * width
        write(x, added, y, at, (_WRITTEN, width, stride, run * width), flat, slope)
    for r in range(whole * _WRITTEN, rows):
        write(x, added, y, r * width, (1, width, stride, 0), flat, slope)


@cache
def rows_forward(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The loop `y = act((x - mean) * scale + shift + residual)` for a number of rows.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something is added before the activation.

    Returns:
        `run(x, added, y, rows, width, affine, slope)` on flat arrays; the rows of `affine` are
        mean, scale and shift of each column, in the precision of the computation, with room for
        whole vectors.
    """
    forward = activate(act)
    write = specialized(_run_write_forward, act=act, residual=residual, forward=forward)
    return specialized(_rows_forward, act=act, residual=residual, write=write)


def _run_add_products(
    grad: Any, x: Any, added: Any, base: int, shape: Any, affine: Any, sums: Any, slope: Any
) -> None:
    rows, width, stride, jump = shape
    size = lanes(x)
    room = sums.size // 2
    steep, zero = spread(slope), spread(number(x, 0))
    k = 0
    while k + size <= width:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        p, q = zero, zero
        for i in range(rows):
            at = base + i * jump + k
            d = load(x, at) - m
            z = fma(d, w, b)
            if residual:
                z += load(added, at)
            g = carry(x, load(grad, at), z, steep)
            p, q = fma(g, d, p), q + g
        accumulate(sums, k, p)
        accumulate(sums, room + k, q)
        k += size
    left = width - k
    if left:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        p, q = zero, zero
        for i in range(rows):
            at = base + i * jump + k
            d = load_part(x, at, left) - m
            z = fma(d, w, b)
            if residual:
                z += load_part(added, at, left)
            g = carry(x, load_part(grad, at, left), z, steep)
            p, q = fma(g, d, p), q + g
        accumulate(sums, k, p)
        accumulate(sums, room + k, q)


def _rows_sums(
    grad: Any, x: Any, added: Any, rows: int, affine: Any, found: Any, table: Any, slope: Any
) -> None:
    width = found.shape[1]
    stride, flat = affine.shape[1], affine.ravel()
    sums, room = table.ravel(), table.shape[1]
    for k in range(2 * room):
        sums[k] = 0
    for r in range(0, rows, _SUMMED):
        at = r * width
        if r + _SUMMED <= rows:  # a count that the compiler knows
            add(grad, x, added, at, (_SUMMED, width, stride, width), flat, sums, slope)
        else:
            add(grad, x, added, at, (rows - r, width, stride, width), flat, sums, slope)
    for k in range(width):
        found[0, k] = sums[k]
        found[1, k] = sums[room + k]


@cache
def rows_sums(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The sums of the backward pass over a number of rows.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, rows, affine, found, table, slope)`; the rows of `found` (float64)
        are written with the column sums of g * (x - mean) and of g, the gradient before the
        activation; `table` is room for two rows of whole vectors, float64.
    """
    carry = through(act)
    add = specialized(_run_add_products, act=act, residual=residual, carry=carry)
    return specialized(_rows_sums, act=act, residual=residual, add=add)


def _run_write_backward(
    grad: Any, x: Any, added: Any, outputs: Any, base: int, shape: Any, affine: Any, slope: Any
) -> None:
    grad_x, grad_added = outputs
    rows, width, stride, jump = shape
    size = lanes(x)
    steep = spread(slope)
    k = 0
    while k + size <= width:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        along, level = load(affine, 3 * stride + k), load(affine, 4 * stride + k)
        for i in range(rows):
            at = base + i * jump + k
            d = load(x, at) - m
            z = fma(d, w, b)
            if residual:
                z += load(added, at)
            g = carry(x, load(grad, at), z, steep)
            if residual:
                store(grad_added, at, g)
            store(grad_x, at, fma(g, w, fma(d, along, level)))
        k += size
    left = width - k
    if left:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        along, level = load(affine, 3 * stride + k), load(affine, 4 * stride + k)
        for i in range(rows):
            at = base + i * jump + k
            d = load_part(x, at, left) - m
            z = fma(d, w, b)
            if residual:
                z += load_part(added, at, left)
            g = carry(x, load_part(grad, at, left), z, steep)
            if residual:
                store_part(grad_added, at, g, left)
            store_part(grad_x, at, fma(g, w, fma(d, along, level)), left)


def _rows_backward(
    grad: Any, x: Any, added: Any, outputs: Any, rows: int, width: int, affine: Any, slope: Any
) -> None:
    stride, flat = affine.shape[1], affine.ravel()
    run = max(1, (min(_RUN // width, rows // _WRITTEN) - 1) | 1)
    whole = rows // (_WRITTEN * run) * run
    for r in range(whole):
        at = (r // run * _WRITTEN * run + r % run) * width
        write(grad, x, added, outputs, at, (_WRITTEN, width, stride, run * width), flat, slope)
    for r in range(whole * _WRITTEN, rows):
        write(grad, x, added, outputs, r * width, (1, width, stride, 0), flat, slope)


@cache
def rows_backward(act: str, residual: bool) -> Any:  # noqa: FBT001
    """Gradients by x and by the residual for a number of rows.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, (grad_x, grad_added), rows, width, affine, slope)`; rows 3 and 4 of
        `affine` are the factor of x - mean and the constant of grad_x, per column.
    """
    carry = through(act)
    write = specialized(_run_write_backward, act=act, residual=residual, carry=carry)
    return specialized(_rows_backward, act=act, residual=residual, write=write)

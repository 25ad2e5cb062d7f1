"""Loops over rows of channels: `(m, c)` with contiguous rows, as NHWC, NLC and `(N, C)` are.

Deviations from a center are summed over blocks of rows in the precision of x, once themselves and
once squared; then they are merged in double precision (theory page, equation 9). The center is
the mean so far, and that of the first rows at the start. One far from its block costs no digits
of the result: the distance is then part of the variance itself.

Eight rows are read side by side, so that a running sum is loaded and stored once for eight values.
"""

from functools import cache
from typing import Any

from bnkit.ops.kernels.activations import activate, through
from bnkit.ops.kernels.compiled import compiled, specialized
from bnkit.ops.kernels.vector import (
    fma,
    lanes,
    load,
    load_part,
    spread,
    store,
    store_part,
)

# Rows summed in the precision of x.
_BLOCK = 128
# Rows read side by side: by the moments, and by the sums of the backward pass.
_TOGETHER = 8
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
def _add_deviations(x: Any, base: int, rows: int, width: int, sums: Any) -> None:
    """Add a few rows to the running sums: (center, of x - center, of its square)."""
    size, room = lanes(x), sums.size // 3
    k = 0
    while k + size <= width:
        c, a, q = load(sums, k), load(sums, room + k), load(sums, 2 * room + k)
        if rows == _TOGETHER:  # a count that the compiler knows
            for i in range(_TOGETHER):
                d = load(x, base + i * width + k) - c
                a, q = a + d, fma(d, d, q)
        else:
            for i in range(rows):
                d = load(x, base + i * width + k) - c
                a, q = a + d, fma(d, d, q)
        store(sums, room + k, a)
        store(sums, 2 * room + k, q)
        k += size
    if k < width:
        c, a, q = load(sums, k), load(sums, room + k), load(sums, 2 * room + k)
        for i in range(rows):
            d = load_part(x, base + i * width + k, width - k) - c
            a, q = a + d, fma(d, d, q)
        store(sums, room + k, a)
        store(sums, 2 * room + k, q)


@compiled
def _block_deviations(x: Any, first: int, last: int, width: int, sums: Any) -> None:
    for k in range(sums.size // 3, sums.size):
        sums[k] = 0
    for r in range(first, last, _TOGETHER):
        _add_deviations(x, r * width, min(_TOGETHER, last - r), width, sums)


@compiled
def rows_moments(x: Any, rows: int, found: Any, table: Any) -> None:
    """Mean and m2 (float64) of the columns of a number of rows.

    Args:
        x: Flat values; a row has as many as `found`.
        rows: How many.
        found: Shape (2, width); written.
        table: Room for three rows of whole vectors, in the precision of the computation.
    """
    width, room = found.shape[1], table.shape[1]
    sums = table.ravel()
    for k in range(room):
        sums[k] = 0
    for k in range(width):
        found[0, k] = 0.0
        found[1, k] = 0.0
    count = 0.0
    first, last = 0, min(_TOGETHER, rows)
    centered = False
    while first < rows:
        _block_deviations(x, first, last, width, sums)
        n = last - first
        inverse, share = 1.0 / n, n / (count + n)
        if centered:
            for k in range(width):
                a, q = sums[room + k], sums[2 * room + k]
                left = a * inverse
                delta = sums[k] + left - found[0, k]
                found[0, k] += delta * share
                found[1, k] += (q - a * left) + delta * delta * (count * share)
                sums[k] = found[0, k]
            count += n
            first = last
        else:
            for k in range(width):
                sums[k] = sums[room + k] * inverse
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
    steep = spread(slope)
    k = 0
    while k + size <= width:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        p, q = load(sums, k), load(sums, room + k)
        for i in range(rows):
            at = base + i * jump + k
            d = load(x, at) - m
            z = fma(d, w, b)
            if residual:
                z += load(added, at)
            g = carry(x, load(grad, at), z, steep)
            p, q = fma(g, d, p), q + g
        store(sums, k, p)
        store(sums, room + k, q)
        k += size
    left = width - k
    if left:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        p, q = load(sums, k), load(sums, room + k)
        for i in range(rows):
            at = base + i * jump + k
            d = load_part(x, at, left) - m
            z = fma(d, w, b)
            if residual:
                z += load_part(added, at, left)
            g = carry(x, load_part(grad, at, left), z, steep)
            p, q = fma(g, d, p), q + g
        store(sums, k, p)
        store(sums, room + k, q)


def _rows_sums(
    grad: Any, x: Any, added: Any, rows: int, affine: Any, found: Any, table: Any, slope: Any
) -> None:
    width = found.shape[1]
    stride, flat = affine.shape[1], affine.ravel()
    sums, room = table.ravel(), table.shape[1]
    for k in range(width):
        found[0, k] = 0.0
        found[1, k] = 0.0
    for first in range(0, rows, _BLOCK):
        last = min(first + _BLOCK, rows)
        for k in range(2 * room):
            sums[k] = 0
        for r in range(first, last, _SUMMED):
            at = r * width
            if r + _SUMMED <= last:  # a count that the compiler knows
                add(grad, x, added, at, (_SUMMED, width, stride, width), flat, sums, slope)
            else:
                add(grad, x, added, at, (last - r, width, stride, width), flat, sums, slope)
        for k in range(width):
            found[0, k] += sums[k]
            found[1, k] += sums[room + k]


@cache
def rows_sums(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The sums of the backward pass over a number of rows.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, rows, affine, found, table, slope)`; the rows of `found` (float64)
        are written with the column sums of g * (x - mean) and of g, the gradient before the
        activation; `table` is room for two rows of whole vectors.
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

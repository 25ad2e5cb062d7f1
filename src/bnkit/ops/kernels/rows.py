"""Loops that write rows of channels: `(m, c)` with contiguous rows, as NHWC, NLC and `(N, C)` are.

Moments are in `row_moments`, the sums of the backward pass in `row_sums`. All of them follow a few
rows that lie far apart, see `streams`.
"""

from functools import cache
from typing import Any

from bnkit.ops.kernels.activations import activate, through
from bnkit.ops.kernels.compiled import specialized
from bnkit.ops.kernels.streams import run_of
from bnkit.ops.kernels.vector import fma, lanes, load, load_part, spread, store, store_part

# Rows written side by side.
_WRITTEN = 4

# what these names mean is set anew for each variant of a loop: `specialized`
residual: Any = None
forward: Any = None
carry: Any = None
write: Any = None


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
    first = 0
    while rows - first >= _WRITTEN:
        run = run_of(rows - first, width, _WRITTEN)
        for r in range(first, first + run):
            write(x, added, y, r * width, (_WRITTEN, width, stride, run * width), flat, slope)
        first += _WRITTEN * run
    for r in range(first, rows):
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
    first = 0
    while rows - first >= _WRITTEN:
        run = run_of(rows - first, width, _WRITTEN)
        shape = _WRITTEN, width, stride, run * width
        for r in range(first, first + run):
            write(grad, x, added, outputs, r * width, shape, flat, slope)
        first += _WRITTEN * run
    for r in range(first, rows):
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

"""Loops over rows of channels: `(m, c)` with contiguous rows, as NHWC, NLC and `(N, C)` are.

Deviations from a center are summed over blocks of rows in the precision of x, once themselves and
once squared: the first block's mean, then that of all blocks before. Blocks are merged in double
precision (theory page, equation 9). A center far from its block costs no digits of the result:
the distance is then part of the variance itself.

Short rows are read several at a time as one wider row, whose columns are merged at the end: an
inner loop over 16 channels would spend its time starting.
"""

from functools import cache
from typing import Any

import numpy as np

from bnkit.ops.kernels.activations import activate, through
from bnkit.ops.kernels.compiled import compiled, specialized

# what these names mean is set anew for each variant of a loop: `specialized`
residual: Any = None
forward: Any = None
carry: Any = None
add_block: Any = None
add_row: Any = None


@compiled
def rows_moments(x: Any, rows: Any, block: int, mean: Any, m2: Any) -> None:
    """Mean and m2 (float64) of the columns over a range of rows.

    Args:
        x: Flat values.
        rows: First and past the last row, of as many values as `mean` has.
        block: Rows summed at a time.
        mean: Written.
        m2: Written.
    """
    width = mean.shape[0]
    zero = x.dtype.type(0)
    a = np.empty(width, x.dtype)
    q = np.empty(width, x.dtype)
    center = np.empty(width, x.dtype)
    for k in range(width):
        mean[k] = 0.0
        m2[k] = 0.0
    count = 0.0
    for start in range(rows[0], rows[1], block):
        stop = min(start + block, rows[1])
        n = stop - start
        for k in range(width):
            a[k] = zero
            q[k] = zero
        if start == rows[0]:
            center[:] = x[start * width : (start + 1) * width]
            _add_deviations(x, (start, stop), center, a, q)
            for k in range(width):
                center[k] = np.float64(center[k]) + np.float64(a[k]) / n
                a[k] = zero
                q[k] = zero
        _add_deviations(x, (start, stop), center, a, q)
        share = n / (count + n)
        for k in range(width):
            left = np.float64(a[k]) / n
            delta = np.float64(center[k]) + left - mean[k]
            mean[k] += delta * share
            m2[k] += (q[k] - n * left * left) + delta * delta * (count * share)
            center[k] = mean[k]
        count += n


@compiled
def _add_deviations(x: Any, rows: Any, center: Any, total: Any, squares: Any) -> None:
    width = center.shape[0]
    r = rows[0]
    while r + 4 <= rows[1]:
        base = r * width
        x0, x1 = x[base : base + width], x[base + width : base + 2 * width]
        x2, x3 = x[base + 2 * width : base + 3 * width], x[base + 3 * width : base + 4 * width]
        for k in range(width):
            c = center[k]
            d0, d1, d2, d3 = x0[k] - c, x1[k] - c, x2[k] - c, x3[k] - c
            total[k] += (d0 + d1) + (d2 + d3)
            squares[k] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        r += 4
    while r < rows[1]:
        x0 = x[r * width : (r + 1) * width]
        for k in range(width):
            d = x0[k] - center[k]
            total[k] += d
            squares[k] += d * d
        r += 1


def _rows_forward(x: Any, added: Any, y: Any, rows: Any, affine: Any, slope: Any) -> None:
    means, scales, shifts = affine[0], affine[1], affine[2]
    width = means.shape[0]
    for r in range(rows[0], rows[1]):
        base = r * width
        xs, ys, rs = x[base : base + width], y[base : base + width], added[base : base + width]
        for k in range(width):
            z = (xs[k] - means[k]) * scales[k] + shifts[k]
            if residual:
                z += rs[k]
            ys[k] = forward(z, slope)


@cache
def rows_forward(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The loop `y = act((x - mean) * scale + shift + residual)` for a range of rows.

    Args:
        act: "none", "relu", "leaky_relu" or "silu".
        residual: Whether something is added before the activation.

    Returns:
        `run(x, added, y, rows, affine, slope)` on flat arrays; the rows of `affine` are mean,
        scale and shift of each column, in the dtype of x.
    """
    forward = activate(act)
    return specialized(_rows_forward, act=act, residual=residual, forward=forward)


def _rows_sums(
    grad: Any, x: Any, added: Any, rows: Any, block: int, affine: Any, sums: Any, slope: Any
) -> None:
    width = affine.shape[1]
    p = np.zeros(width, x.dtype)
    q = np.zeros(width, x.dtype)
    sums[:] = 0.0
    for start in range(rows[0], rows[1], block):
        stop = min(start + block, rows[1])
        add_block(grad, x, added, (start, stop), affine, p, q, slope)
        for k in range(width):
            sums[0, k] += p[k]
            sums[1, k] += q[k]
            p[k] = 0
            q[k] = 0


@cache
def rows_sums(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The sums of the backward pass over a range of rows.

    Args:
        act: Name of the activation.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, rows, block, affine, sums, slope)`; the rows of `sums` (float64) are
        written with the column sums of g * (x - mean) and of g, the gradient before the
        activation.
    """
    add_block = _add_block(act, residual)
    return specialized(_rows_sums, act=act, residual=residual, add_block=add_block)


def _add_block_add_row(x: Any, g: Any, r: Any, affine: Any, p: Any, q: Any, slope: Any) -> None:
    means, scales, shifts = affine[0], affine[1], affine[2]
    for k in range(p.shape[0]):
        d = x[k] - means[k]
        z = d * scales[k] + shifts[k]
        if residual:
            z += r[k]
        u = carry(g[k], z, slope)
        p[k] += u * d
        q[k] += u


def _run_add_block(
    grad: Any, x: Any, added: Any, rows: Any, affine: Any, p: Any, q: Any, slope: Any
) -> None:
    means, scales, shifts = affine[0], affine[1], affine[2]
    width = p.shape[0]
    r = rows[0]
    while r + 2 <= rows[1]:
        base = r * width
        end, after = base + width, base + 2 * width
        x0, x1, g0, g1 = x[base:end], x[end:after], grad[base:end], grad[end:after]
        r0, r1 = added[base:end], added[end:after]
        for k in range(width):
            d0, d1 = x0[k] - means[k], x1[k] - means[k]
            z0, z1 = d0 * scales[k] + shifts[k], d1 * scales[k] + shifts[k]
            if residual:
                z0 += r0[k]
                z1 += r1[k]
            u0, u1 = carry(g0[k], z0, slope), carry(g1[k], z1, slope)
            p[k] += u0 * d0 + u1 * d1
            q[k] += u0 + u1
        r += 2
    if r < rows[1]:
        base = r * width
        end = base + width
        add_row(x[base:end], grad[base:end], added[base:end], affine, p, q, slope)


@cache
def _add_block(act: str, residual: bool) -> Any:  # noqa: FBT001
    carry = through(act)
    add_row = specialized(_add_block_add_row, act=act, residual=residual, carry=carry)
    return specialized(_run_add_block, act=act, residual=residual, carry=carry, add_row=add_row)


def _rows_backward(
    grad: Any,
    x: Any,
    added: Any,
    grad_x: Any,
    grad_added: Any,
    rows: Any,
    affine: Any,
    lines: Any,
    slope: Any,
) -> None:
    means, scales, shifts = affine[0], affine[1], affine[2]
    along, level = lines[0], lines[1]
    width = means.shape[0]
    for r in range(rows[0], rows[1]):
        base = r * width
        end = base + width
        xs, gs, rs, out = x[base:end], grad[base:end], added[base:end], grad_x[base:end]
        out_added = grad_added[base:end]
        for k in range(width):
            d = xs[k] - means[k]
            z = d * scales[k] + shifts[k]
            if residual:
                z += rs[k]
            g = carry(gs[k], z, slope)
            if residual:
                out_added[k] = g
            out[k] = g * scales[k] + d * along[k] + level[k]


@cache
def rows_backward(act: str, residual: bool) -> Any:  # noqa: FBT001
    """Gradients by x and by the residual for a range of rows.

    Args:
        act: Name of the activation.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, grad_x, grad_added, rows, affine, lines, slope)`; the rows of
        `lines` are the factor of x - mean and the constant of grad_x, per column.
    """
    carry = through(act)
    return specialized(_rows_backward, act=act, residual=residual, carry=carry)

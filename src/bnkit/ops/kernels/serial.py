"""Whole batch norms as one call each, by address: what small tensors need.

Handing an array to a compiled function costs a microsecond or two; a batch norm of a small tensor
takes less. So these take addresses, sizes and numbers, run in one thread, and use the same loops.
An address of 0 stands for what is not given.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]
from numba.core import types
from numba.extending import intrinsic

from bnkit.ops.kernels.compiled import compiled, specialized
from bnkit.ops.kernels.planes import (
    finish_statistics,
    planes_backward,
    planes_forward,
    planes_train,
)
from bnkit.ops.kernels.rows import rows_backward, rows_forward, rows_moments, rows_sums

# what these names mean is set anew for each variant of a loop: `specialized`
dtype: Any = None
residual: Any = None
loop: Any = None
forward: Any = None
planes: Any = None
sum_rows: Any = None
write_rows: Any = None


@intrinsic
def _as_pointer(typing_context: Any, address: Any) -> Any:  # noqa: ARG001  Numba's form

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        return builder.inttoptr(arguments[0], kind)

    return types.voidptr(types.int64), generate


# what Numba makes of the intrinsic takes one argument less than Python sees
pointer: Any = _as_pointer


@compiled
def _parameters(weight: Any, bias: Any, c: int, like: Any) -> Any:
    table = np.empty((2, c), like.dtype)
    for k in range(c):
        table[0, k] = weight[k] if weight.size else 1
        table[1, k] = bias[k] if bias.size else 0
    return table


def _train_serial(x, added, y, weight, bias, statistics, n, c, s, rows, block, eps, slope):  # noqa: ANN001, ANN202
    size = n * c * s
    xs = carray(pointer(x), size, dtype)
    ys = carray(pointer(y), size, dtype)
    rs = carray(pointer(added), size if residual else 0, dtype)
    ws = carray(pointer(weight), c if weight else 0, dtype)
    bs = carray(pointer(bias), c if bias else 0, dtype)
    out = carray(pointer(statistics), (2, c), dtype)
    slope = dtype(slope)
    parameters = _parameters(ws, bs, c, xs)
    exact, affine = np.empty((2, c)), np.empty((3, c), dtype)
    if rows:
        rows_moments(xs, (0, n * s), block, exact[0], exact[1])
        finish_statistics((0, c), n * s, parameters, eps, exact, affine)
        forward(xs, rs, ys, (0, n * s), affine, slope)
    else:
        loop(xs, rs, ys, (n, c, s), (0, c), block, parameters, eps, exact, affine, slope)
    for k in range(c):
        out[0, k] = exact[0, k]
        out[1, k] = exact[1, k]


@cache
def train_serial(dtype: Any, act: str, residual: bool) -> Any:  # noqa: FBT001
    """Training forward.

    Args:
        dtype: NumPy dtype of all values.
        act: Name of the activation.
        residual: Whether something is added before the activation.

    Returns:
        `run(x, added, y, weight, bias, statistics, n, c, s, rows, block, eps, slope)`;
        `statistics` (mean, m2; 2 x c) is written.
    """
    loop = planes_train(act, residual)
    forward = rows_forward(act, residual)
    return specialized(
        _train_serial, dtype=dtype, act=act, residual=residual, loop=loop, forward=forward
    )


def _eval_serial(x, added, y, weight, bias, mean, var, n, c, s, rows, eps, slope):  # noqa: ANN001, ANN202
    size = n * c * s
    xs = carray(pointer(x), size, dtype)
    ys = carray(pointer(y), size, dtype)
    rs = carray(pointer(added), size if residual else 0, dtype)
    ws = carray(pointer(weight), c if weight else 0, dtype)
    bs = carray(pointer(bias), c if bias else 0, dtype)
    means = carray(pointer(mean), c, dtype)
    variances = carray(pointer(var), c, dtype)
    slope = dtype(slope)
    parameters = _parameters(ws, bs, c, xs)
    affine = np.empty((3, c), dtype)
    for k in range(c):
        affine[0, k] = means[k]
        affine[1, k] = parameters[0, k] / math.sqrt(variances[k] + eps)
        affine[2, k] = parameters[1, k]
    if rows:
        forward(xs, rs, ys, (0, n * s), affine, slope)
    else:
        planes(xs, rs, ys, (n, c, s), (0, c), affine, slope)


@cache
def eval_serial(dtype: Any, act: str, residual: bool) -> Any:  # noqa: FBT001
    """Inference forward.

    Args:
        dtype: NumPy dtype of all values.
        act: Name of the activation.
        residual: Whether something is added before the activation.

    Returns:
        `run(x, added, y, weight, bias, mean, var, n, c, s, rows, eps, slope)`.
    """
    planes = planes_forward(act, residual)
    forward = rows_forward(act, residual)
    return specialized(
        _eval_serial, dtype=dtype, act=act, residual=residual, planes=planes, forward=forward
    )


def _backward_serial(  # noqa: ANN202
    grad, x, added, grad_x, grad_added, weight, bias, mean, m2, by_parameters,  # noqa: ANN001
    n, c, s, rows, block, eps, slope,  # noqa: ANN001
):  # fmt: skip
    size, m = n * c * s, n * s
    gs = carray(pointer(grad), size, dtype)
    xs = carray(pointer(x), size, dtype)
    rs = carray(pointer(added), size if residual else 0, dtype)
    gx = carray(pointer(grad_x), size, dtype)
    gr = carray(pointer(grad_added), size if residual else 0, dtype)
    ws = carray(pointer(weight), c if weight else 0, dtype)
    bs = carray(pointer(bias), c if bias else 0, dtype)
    means = carray(pointer(mean), c, dtype)
    squares = carray(pointer(m2), c, dtype)
    out = carray(pointer(by_parameters), (2, c), dtype)
    slope = dtype(slope)
    parameters = _parameters(ws, bs, c, xs)
    affine, sums, inverse = np.empty((3, c), dtype), np.empty((2, c)), np.empty(c)
    for k in range(c):
        inverse[k] = 1.0 / math.sqrt(squares[k] / m + eps)
        affine[0, k] = means[k]
        affine[1, k] = parameters[0, k] * inverse[k]
        affine[2, k] = parameters[1, k]
    if rows:
        lines = np.empty((2, c), dtype)
        sum_rows(gs, xs, rs, (0, m), block, affine, sums, slope)
        for k in range(c):
            sums[0, k] *= inverse[k]
            lines[0, k] = -affine[1, k] * inverse[k] * sums[0, k] / m
            lines[1, k] = -affine[1, k] * sums[1, k] / m
        write_rows(gs, xs, rs, gx, gr, (0, m), affine, lines, slope)
    else:
        shape = (n, c, s)
        planes(gs, xs, rs, gx, gr, shape, (0, c), block, affine, inverse, sums, slope)
    for k in range(c):
        out[0, k] = sums[0, k]
        out[1, k] = sums[1, k]


@cache
def backward_serial(dtype: Any, act: str, residual: bool) -> Any:  # noqa: FBT001
    """Gradients of the training form.

    Args:
        dtype: NumPy dtype of all values.
        act: Name of the activation.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, grad_x, grad_added, weight, bias, mean, m2, by_parameters, n, c, s,
        rows, block, eps, slope)`; `by_parameters` (weight, bias; 2 x c) is written.
    """
    planes = planes_backward(act, residual)
    sum_rows = rows_sums(act, residual)
    write_rows = rows_backward(act, residual)
    return specialized(
        _backward_serial,
        dtype=dtype,
        act=act,
        residual=residual,
        planes=planes,
        sum_rows=sum_rows,
        write_rows=write_rows,
    )


def _commit_serial(batch_mean, batch_m2, c, count, mean, var, tracked, left_out, weight, skip):  # noqa: ANN001, ANN202
    new_mean = carray(pointer(batch_mean), c, dtype)
    m2 = carray(pointer(batch_m2), c, dtype)
    means = carray(pointer(mean), c, dtype)
    variances = carray(pointer(var), c, dtype)
    batches = carray(pointer(tracked), 1 if tracked else 0, np.int64)
    refused = carray(pointer(left_out), 1 if left_out else 0, np.int64)
    finite = True
    for k in range(c):
        finite = finite and math.isfinite(new_mean[k]) and math.isfinite(m2[k])
    if skip and not finite:
        if refused.size:
            refused[0] += 1
        return False
    if batches.size:
        batches[0] += 1
    factor = weight if weight >= 0 else 1.0 / batches[0]
    for k in range(c):
        means[k] = (1.0 - factor) * means[k] + factor * new_mean[k]
        variances[k] = (1.0 - factor) * variances[k] + factor * (m2[k] / (count - 1))
    return True


@cache
def commit_serial(dtype: Any) -> Any:
    """Averaging a batch into running statistics of the same dtype.

    Args:
        dtype: NumPy dtype of the statistics.

    Returns:
        `run(batch_mean, batch_m2, c, count, mean, var, tracked, left_out, weight, skip) -> finite`;
        `weight` below 0 stands for 1 / tracked, `skip` leaves a batch with NaN or infinity out.
    """
    return specialized(_commit_serial, dtype=dtype)

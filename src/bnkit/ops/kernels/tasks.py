"""The parts of a batch norm that several threads do at once, by address.

Each task reads its description from entry `RESERVED` on; `eps` and `slope` come as the address of
two float64 numbers. Part i of planes is a range of channels, part i of rows a range of rows.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from bnkit.ops.kernels.compiled import compiled, specialized
from bnkit.ops.kernels.openmp import PARTS, RESERVED, Task, task
from bnkit.ops.kernels.planes import planes_backward, planes_forward, planes_train
from bnkit.ops.kernels.rows import rows_backward, rows_forward, rows_moments, rows_sums
from bnkit.ops.kernels.serial import pointer

# what these names mean is set anew for each variant of a loop: `specialized`
dtype: Any = None
residual: Any = None
loop: Any = None


@compiled
def _range(count: int, parts: int, part: int) -> Any:
    return count * part // parts, count * (part + 1) // parts


def _train_planes_task(a: Any, part: int) -> None:
    at = RESERVED
    n, c, s, block = a[at + 7], a[at + 8], a[at + 9], a[at + 10]
    size = n * c * s
    x = carray(pointer(a[at]), size, dtype)
    added = carray(pointer(a[at + 1]), size if residual else 0, dtype)
    y = carray(pointer(a[at + 2]), size, dtype)
    parameters = carray(pointer(a[at + 3]), (2, c), dtype)
    statistics = carray(pointer(a[at + 4]), (2, c), np.float64)
    affine = carray(pointer(a[at + 5]), (3, c), dtype)
    numbers = carray(pointer(a[at + 6]), 2, np.float64)
    channels = _range(c, a[PARTS], part)
    slope = dtype(numbers[1])
    loop(
        x,
        added,
        y,
        (n, c, s),
        channels,
        block,
        parameters,
        numbers[0],
        statistics,
        affine,
        slope,
    )


@cache
def train_planes_task(dtype: Any, act: str, residual: bool) -> Task:  # noqa: FBT001
    """x, added, y, parameters, statistics, affine, numbers; n, c, s, block."""
    loop = planes_train(act, residual)
    return task(specialized(_train_planes_task, dtype=dtype, act=act, residual=residual, loop=loop))


def _forward_planes_task(a: Any, part: int) -> None:
    at = RESERVED
    n, c, s = a[at + 5], a[at + 6], a[at + 7]
    size = n * c * s
    x = carray(pointer(a[at]), size, dtype)
    added = carray(pointer(a[at + 1]), size if residual else 0, dtype)
    y = carray(pointer(a[at + 2]), size, dtype)
    affine = carray(pointer(a[at + 3]), (3, c), dtype)
    numbers = carray(pointer(a[at + 4]), 2, np.float64)
    loop(x, added, y, (n, c, s), _range(c, a[PARTS], part), affine, dtype(numbers[1]))


@cache
def forward_planes_task(dtype: Any, act: str, residual: bool) -> Task:  # noqa: FBT001
    """x, added, y, affine, numbers; n, c, s."""
    loop = planes_forward(act, residual)
    return task(
        specialized(_forward_planes_task, dtype=dtype, act=act, residual=residual, loop=loop)
    )


def _backward_planes_task(a: Any, part: int) -> None:
    at = RESERVED
    n, c, s, block = a[at + 9], a[at + 10], a[at + 11], a[at + 12]
    size = n * c * s
    other = size if residual else 0
    grad = carray(pointer(a[at]), size, dtype)
    x = carray(pointer(a[at + 1]), size, dtype)
    added = carray(pointer(a[at + 2]), other, dtype)
    grad_x = carray(pointer(a[at + 3]), size, dtype)
    grad_added = carray(pointer(a[at + 4]), other, dtype)
    affine = carray(pointer(a[at + 5]), (3, c), dtype)
    invstd = carray(pointer(a[at + 6]), c, np.float64)
    sums = carray(pointer(a[at + 7]), (2, c), np.float64)
    numbers = carray(pointer(a[at + 8]), 2, np.float64)
    channels = _range(c, a[PARTS], part)
    slope = dtype(numbers[1])
    loop(
        grad,
        x,
        added,
        grad_x,
        grad_added,
        (n, c, s),
        channels,
        block,
        affine,
        invstd,
        sums,
        slope,
    )


@cache
def backward_planes_task(dtype: Any, act: str, residual: bool) -> Task:  # noqa: FBT001
    """grad, x, added, grad_x, grad_added, affine, invstd, sums, numbers; n, c, s, block."""
    loop = planes_backward(act, residual)
    return task(
        specialized(_backward_planes_task, dtype=dtype, act=act, residual=residual, loop=loop)
    )


def _rows_moments_task(a: Any, part: int) -> None:
    at = RESERVED
    rows, width, block = a[at + 2], a[at + 3], a[at + 4]
    x = carray(pointer(a[at]), rows * width, dtype)
    partial = carray(pointer(a[at + 1]), (a[PARTS], 2, width), np.float64)
    rows_moments(x, _range(rows, a[PARTS], part), block, partial[part, 0], partial[part, 1])


@cache
def rows_moments_task(dtype: Any) -> Task:
    """x, partial (parts x 2 x width); rows, width, block."""
    return task(specialized(_rows_moments_task, dtype=dtype))


def _forward_rows_task(a: Any, part: int) -> None:
    at = RESERVED
    rows, width = a[at + 5], a[at + 6]
    x = carray(pointer(a[at]), rows * width, dtype)
    added = carray(pointer(a[at + 1]), rows * width if residual else 0, dtype)
    y = carray(pointer(a[at + 2]), rows * width, dtype)
    affine = carray(pointer(a[at + 3]), (3, width), dtype)
    numbers = carray(pointer(a[at + 4]), 2, np.float64)
    loop(x, added, y, _range(rows, a[PARTS], part), affine, dtype(numbers[1]))


@cache
def forward_rows_task(dtype: Any, act: str, residual: bool) -> Task:  # noqa: FBT001
    """x, added, y, affine, numbers; rows, width."""
    loop = rows_forward(act, residual)
    return task(specialized(_forward_rows_task, dtype=dtype, act=act, residual=residual, loop=loop))


def _rows_sums_task(a: Any, part: int) -> None:
    at = RESERVED
    rows, width, block = a[at + 6], a[at + 7], a[at + 8]
    grad = carray(pointer(a[at]), rows * width, dtype)
    x = carray(pointer(a[at + 1]), rows * width, dtype)
    added = carray(pointer(a[at + 2]), rows * width if residual else 0, dtype)
    affine = carray(pointer(a[at + 3]), (3, width), dtype)
    partial = carray(pointer(a[at + 4]), (a[PARTS], 2, width), np.float64)
    numbers = carray(pointer(a[at + 5]), 2, np.float64)
    part_rows = _range(rows, a[PARTS], part)
    loop(grad, x, added, part_rows, block, affine, partial[part], dtype(numbers[1]))


@cache
def rows_sums_task(dtype: Any, act: str, residual: bool) -> Task:  # noqa: FBT001
    """grad, x, added, affine, partial (parts x 2 x width), numbers; rows, width, block."""
    loop = rows_sums(act, residual)
    return task(specialized(_rows_sums_task, dtype=dtype, act=act, residual=residual, loop=loop))


def _backward_rows_task(a: Any, part: int) -> None:
    at = RESERVED
    rows, width = a[at + 8], a[at + 9]
    size = rows * width
    other = size if residual else 0
    grad = carray(pointer(a[at]), size, dtype)
    x = carray(pointer(a[at + 1]), size, dtype)
    added = carray(pointer(a[at + 2]), other, dtype)
    grad_x = carray(pointer(a[at + 3]), size, dtype)
    grad_added = carray(pointer(a[at + 4]), other, dtype)
    affine = carray(pointer(a[at + 5]), (3, width), dtype)
    lines = carray(pointer(a[at + 6]), (2, width), dtype)
    numbers = carray(pointer(a[at + 7]), 2, np.float64)
    part_rows = _range(rows, a[PARTS], part)
    loop(grad, x, added, grad_x, grad_added, part_rows, affine, lines, dtype(numbers[1]))


@cache
def backward_rows_task(dtype: Any, act: str, residual: bool) -> Task:  # noqa: FBT001
    """grad, x, added, grad_x, grad_added, affine, lines, numbers; rows, width."""
    loop = rows_backward(act, residual)
    return task(
        specialized(_backward_rows_task, dtype=dtype, act=act, residual=residual, loop=loop)
    )

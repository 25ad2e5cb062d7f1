"""Rows of channels, read several as one where they are short, and what several threads found.

A loop over 16 channels would spend its time starting. So `fold` rows are read as one, whose columns
are merged at the end; the rows that are left over come second.
"""

from functools import cache
from typing import Any

import numpy as np

from bnkit.ops.kernels.compiled import compiled, specialized
from bnkit.ops.kernels.row_moments import rows_moments
from bnkit.ops.kernels.row_sums import rows_sums
from bnkit.ops.kernels.rows import rows_backward, rows_forward

# what these names mean is set anew for each variant of a loop: `specialized`
loop: Any = None

# Rows at least this wide keep the vector units busy; shorter ones are read several as one.
_WIDTH = 64
_VECTOR = 16
_LINE = 64


@compiled
def fold_of(c: int) -> int:
    """How many rows of c values to read as one: a useful width, of whole vectors if possible."""
    if c >= _WIDTH:
        return 1
    step, rest = _VECTOR, c
    while rest:
        step, rest = rest, step % rest
    step = _VECTOR // step
    return step * ((_WIDTH + c * step - 1) // (c * step))


@compiled
def _folded(rows: Any, c: int, rest: int) -> Any:
    """First value, number and width of the rows that are read several as one, or of the rest."""
    fold = fold_of(c)
    whole = (rows[1] - rows[0]) // fold
    if rest:
        return (rows[0] + whole * fold) * c, rows[1] - rows[0] - whole * fold, c
    return rows[0] * c, whole, c * fold


@compiled
def room(rows: int, width: int, like: Any) -> Any:
    """An array of rows with room for whole vectors.

    Args:
        rows: How many.
        width: Values of a row, at least.
        like: An array of the same dtype.

    Returns:
        Shape (rows, width rounded up), uninitialised.
    """
    # a vector that crosses lines of the cache costs two loads: begin where a line does
    padded = (width + _VECTOR - 1) // _VECTOR * _VECTOR
    values = np.empty(rows * padded + _VECTOR, like.dtype)
    skip = (-values.ctypes.data % _LINE) // values.itemsize
    return values[skip : skip + rows * padded].reshape(rows, padded)


@compiled
def tiled(table: Any, c: int, fold: int) -> Any:
    """A table of c columns for rows that are read several as one."""
    if fold == 1:
        return table
    rows = table.shape[0]
    wide = room(rows, c * fold, table)
    for i in range(rows):
        for j in range(fold):
            for k in range(c):
                wide[i, j * c + k] = table[i, k]
    return wide


@compiled
def copy(table: Any, first: int, out: Any) -> None:
    """Both rows of a table, from a column on, into all columns of another."""
    for i in range(2):
        for k in range(out.shape[1]):
            out[i, k] = table[i, first + k]


@compiled
def merge_moments(partial: Any, counts: Any, merged: Any) -> None:
    """Mean and m2 of all parts: the mean of means, and m2 within plus m2 between.

    Args:
        partial: Shape (parts, 2, c): mean and m2 of each.
        counts: Values per channel of each part.
        merged: Shape (2, c); written.
    """
    c = merged.shape[1]
    for k in range(c):
        merged[0, k] = 0.0
        merged[1, k] = 0.0
    total = 0.0
    for i in range(counts.size):
        n = counts[i]
        if n == 0:
            continue
        share = n / (total + n)
        for k in range(c):
            delta = partial[i, 0, k] - merged[0, k]
            merged[0, k] += delta * share
            merged[1, k] += partial[i, 1, k] + delta * delta * (total * share)
        total += n


@compiled
def channel_moments(x: Any, c: int, like: Any, found: Any) -> None:
    """Mean and m2 of the channels of whole rows.

    Args:
        x: Flat values.
        c: Channels.
        like: An array in the precision of the computation.
        found: Shape (2, c), float64; written.
    """
    fold = fold_of(c)
    center, sums = room(1, c * fold, like).ravel(), room(2, c * fold, found).ravel()
    partial = np.empty((fold + 1, 2, c))
    counts = np.empty(fold + 1)
    wide = found if fold == 1 else np.empty((2, c * fold))
    for rest in range(1 if fold == 1 else 2):
        at, count, width = _folded((0, x.size // c), c, rest)
        rows_moments(x[at:], count, wide[:, :width], center, sums)
        for j in range(width // c if fold > 1 else 0):
            group = fold if rest else j
            counts[group] = count
            copy(wide, j * c, partial[group])
    if fold > 1:
        merge_moments(partial, counts, found)


@compiled
def add_columns(wide: Any, found: Any) -> None:
    """Add the columns of folded rows, shape (2, fold * c), to those of channels, (2, c)."""
    c = found.shape[1]
    for i in range(2):
        for j in range(wide.shape[1] // c):
            for k in range(c):
                found[i, k] += wide[i, j * c + k]


def _channels_forward(
    x: Any, added: Any, y: Any, rows: Any, c: int, affine: Any, slope: Any
) -> None:
    for rest in range(2):
        at, count, width = _folded(rows, c, rest)
        table = tiled(affine, c, width // c)
        loop(x[at:], added[at:], y[at:], count, width, table, slope)


@cache
def channels_forward(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The loop `y = act((x - mean) * scale + shift + residual)` for a range of rows.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something is added before the activation.

    Returns:
        `run(x, added, y, rows, c, affine, slope)`; `affine` has room for whole vectors.
    """
    loop = rows_forward(act, residual)
    return specialized(_channels_forward, act=act, residual=residual, loop=loop)


def _channels_sums(
    grad: Any, x: Any, added: Any, rows: Any, affine: Any, found: Any, slope: Any
) -> None:
    c = found.shape[1]
    fold = fold_of(c)
    wide = np.empty((2, c * fold))
    sums = room(2, c * fold, found)
    for i in range(2):
        for k in range(c):
            found[i, k] = 0.0
    for rest in range(2):
        at, count, width = _folded(rows, c, rest)
        part = wide[:, :width]
        table = tiled(affine, c, width // c)
        loop(grad[at:], x[at:], added[at:], count, table, part, sums, slope)
        add_columns(part, found)


@cache
def channels_sums(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The sums of the backward pass over a range of rows.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, rows, affine, found, slope)`; `found` (2 x c, float64) is written
        with the sums of g * (x - mean) and of g, the gradient before the activation.
    """
    loop = rows_sums(act, residual)
    return specialized(_channels_sums, act=act, residual=residual, loop=loop)


def _channels_backward(
    grad: Any, x: Any, added: Any, outputs: Any, rows: Any, c: int, affine: Any, slope: Any
) -> None:
    for rest in range(2):
        at, count, width = _folded(rows, c, rest)
        table = tiled(affine, c, width // c)
        written = outputs[0][at:], outputs[1][at:]
        loop(grad[at:], x[at:], added[at:], written, count, width, table, slope)


@cache
def channels_backward(act: str, residual: bool) -> Any:  # noqa: FBT001
    """Gradients by x and by the residual for a range of rows.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, (grad_x, grad_added), rows, c, affine, slope)`; rows 3 and 4 of
        `affine` are the factor of x - mean and the constant of grad_x.
    """
    loop = rows_backward(act, residual)
    return specialized(_channels_backward, act=act, residual=residual, loop=loop)

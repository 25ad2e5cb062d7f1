"""Rows over several threads: each takes a range of rows, and their moments are merged."""

from typing import Any

import numpy as np
from torch import Tensor

from bnkit.ops.kernels import threads
from bnkit.ops.kernels.memory import Memory, added, flat, flat_outputs, rows_in_cache, slope_of
from bnkit.ops.registry import Affine

# Rows at least this wide keep the vector units busy.
_WIDTH = 128


def train_rows(
    x: Tensor, y: Tensor, affine: Affine, memory: Memory, parameters: np.ndarray
) -> np.ndarray:
    """Training forward into y; returns mean and m2."""
    from bnkit.ops.kernels.rows import rows_moments

    n, c, s = memory.shape
    fold, whole = _folded(n * s, c)
    values, width = flat(x), fold * c
    parts = threads.split(whole, threads.workers(x.numel()))
    partial = np.empty((len(parts) + 1, 2, width))
    block = rows_in_cache(x, width)
    threads.run(lambda i: rows_moments(values, parts[i], block, *partial[i]), parts)
    counts = [b - a for a, b in parts]
    rest = n * s - whole * fold
    mean, m2 = _merged_columns(partial[: len(parts)], counts, fold)
    if rest:
        rows_moments(values[whole * width :], (0, rest), block, *partial[-1, :, :c])
        tail = np.stack([np.stack([mean, m2]), partial[-1, :, :c]])
        mean, m2 = _merged(tail, [whole * fold, rest])
    table = np.empty((3, c), parameters.dtype)
    table[0], table[2] = mean, parameters[1]
    table[1] = parameters[0] / np.sqrt(m2 / (n * s) + affine.eps)
    forward_rows(x, y, affine, (n * s, c), table)
    return np.stack([mean, m2])


def forward_rows(
    x: Tensor, y: Tensor, affine: Affine, size: tuple[int, int], table: np.ndarray
) -> None:
    """Inference forward into y, from rows mean, scale and shift of `table`."""
    from bnkit.ops.kernels.rows import rows_forward

    m, c = size
    loop = rows_forward(affine.act.name, affine.residual is not None)
    arrays, slope = (flat(x), added(affine, x), flat(y)), slope_of(affine, x)

    def body(part: tuple[int, int], start: int, columns: np.ndarray) -> None:
        loop(*(a[start:] for a in arrays), part, columns, slope)

    _over_rows(x, (m, c), table, body)


def backward_rows(
    given: tuple[Tensor, Tensor, Affine],
    outputs: tuple[Tensor, Tensor | None],
    memory: Memory,
    tables: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Gradients by x and the residual into `outputs`; returns those of weight and bias."""
    from bnkit.ops.kernels.rows import rows_backward, rows_sums

    grad_y, x, affine = given
    table, invstd = tables
    n, c, s = memory.shape
    kind = affine.act.name, affine.residual is not None
    slope = slope_of(affine, x)
    sum_loop, grad_loop = rows_sums(*kind), rows_backward(*kind)
    reads = flat(grad_y), flat(x), added(affine, x)
    writes = flat_outputs(outputs)
    found: list[np.ndarray] = []

    def add(part: tuple[int, int], start: int, columns: np.ndarray) -> None:
        width = columns.shape[1]
        sums = np.empty((2, width))
        block = rows_in_cache(x, width)
        sum_loop(*(a[start:] for a in reads), part, block, columns, sums, slope)
        found.append(sums.reshape(2, -1, c).sum(1))

    _over_rows(x, (n * s, c), table, add)
    sums = np.sum(found, axis=0)
    sums[0] *= invstd
    lines = np.empty((2, c))
    lines[0] = -table[1] * invstd * sums[0] / (n * s)
    lines[1] = -table[1] * sums[1] / (n * s)

    def write(part: tuple[int, int], start: int, columns: np.ndarray) -> None:
        arrays = (*(a[start:] for a in reads), *(a[start:] for a in writes))
        grad_loop(*arrays, part, columns[:3], columns[3:], slope)

    _over_rows(x, (n * s, c), np.concatenate([table, lines]).astype(table.dtype), write)
    return sums


def _over_rows(x: Tensor, size: tuple[int, int], table: np.ndarray, body: Any) -> None:
    """Call `body(part, start, columns)` for all rows: folded to a useful width, then the rest."""
    m, c = size
    fold, whole = _folded(m, c)
    parts = threads.split(whole, threads.workers(x.numel()))
    wide = np.tile(table, (1, fold)) if fold > 1 else table
    threads.run(lambda i: body(parts[i], 0, wide), parts)
    rest = m - whole * fold
    if rest:
        body((0, rest), whole * fold * c, table)


def _folded(m: int, c: int) -> tuple[int, int]:
    """Rows read as one, and the number of such rows."""
    fold = max(1, min(_WIDTH // c, m))
    return fold, m // fold


def _merged_columns(partial: np.ndarray, counts: list[int], fold: int) -> np.ndarray:
    mean, m2 = _merged(partial, counts)
    if fold == 1:
        return np.stack([mean, m2])
    columns = np.stack([mean, m2]).reshape(2, fold, -1).transpose(1, 0, 2)
    return np.stack(_merged(columns, [sum(counts)] * fold))


def _merged(partial: np.ndarray, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Merge of all parts at once: the mean of means, and m2 within plus m2 between."""
    if len(counts) == 1:
        return partial[0, 0], partial[0, 1]
    weights = np.asarray(counts, np.float64)[:, None]
    means = partial[:, 0]
    shift = means[0]
    mean = shift + (weights * (means - shift)).sum(0) / weights.sum()
    return mean, partial[:, 1].sum(0) + (weights * (means - mean) ** 2).sum(0)

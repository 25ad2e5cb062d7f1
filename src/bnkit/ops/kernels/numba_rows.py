"""Rows over several threads: each takes a range of rows, and their moments are merged."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from bnkit.ops.kernels.memory import (
    TYPES,
    Memory,
    address,
    addresses,
    numbers_of,
    rows_in_cache,
    variant_of,
)
from bnkit.ops.registry import Affine

# Rows at least this wide keep the vector units busy.
_WIDTH = 128


def train_rows(
    x: Tensor, y: Tensor, affine: Affine, memory: Memory, parameters: np.ndarray
) -> np.ndarray:
    """Training forward into y; returns mean and m2."""
    n, c, s = memory.shape
    statistics = _moments(x, memory)
    mean, m2 = statistics
    table = np.empty_like(parameters, shape=(3, c))
    table[0], table[2] = mean, parameters[1]
    table[1] = parameters[0] / np.sqrt(m2 / (n * s) + affine.eps)
    forward_rows(x, y, affine, memory, table)
    return statistics


def forward_rows(x: Tensor, y: Tensor, affine: Affine, memory: Memory, table: np.ndarray) -> None:
    """Inference forward into y, from rows mean, scale and shift of `table`."""
    from bnkit.ops.kernels import openmp, tasks

    work = tasks.forward_rows_task(*variant_of(x, affine))
    numbers = numbers_of(affine)
    places = addresses(x, affine.residual, y)

    def forward(start: int, rows: int, columns: np.ndarray) -> None:
        width = columns.shape[1]
        parts = openmp.threads(rows * width, rows)
        tables = columns.ctypes.data, numbers.ctypes.data
        openmp.run(work, parts, (*_from(places, start, x), *tables, rows, width))

    _over_rows(memory, table, forward)


def backward_rows(
    given: tuple[Tensor, Tensor, Affine],
    outputs: tuple[Tensor, Tensor | None],
    memory: Memory,
    tables: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Gradients by x and the residual into `outputs`; returns those of weight and bias."""
    from bnkit.ops.kernels import openmp, tasks

    grad_y, x, affine = given
    table, invstd = tables
    n, c, s = memory.shape
    kind = variant_of(x, affine)
    summing, writing = tasks.rows_sums_task(*kind), tasks.backward_rows_task(*kind)
    numbers = numbers_of(affine)
    reads = addresses(grad_y, x, affine.residual)
    writes = addresses(*outputs)
    sums = np.zeros((2, c))

    def add(start: int, rows: int, columns: np.ndarray) -> None:
        width = columns.shape[1]
        parts = openmp.threads(rows * width, rows)
        partial = np.empty((parts, 2, width))
        places = columns.ctypes.data, partial.ctypes.data, numbers.ctypes.data
        sizes = rows, width, rows_in_cache(x, width)
        openmp.run(summing, parts, (*_from(reads, start, x), *places, *sizes))
        sums[:] += partial.sum(0).reshape(2, -1, c).sum(1)

    _over_rows(memory, table, add)
    sums[0] *= invstd
    lines = np.empty((2, c))
    lines[0] = -table[1] * invstd * sums[0] / (n * s)
    lines[1] = -table[1] * sums[1] / (n * s)

    def write(start: int, rows: int, columns: np.ndarray) -> None:
        width = columns.shape[1]
        parts = openmp.threads(rows * width, rows)
        places = columns.ctypes.data, columns[3:].ctypes.data, numbers.ctypes.data
        starts = _from((*reads, *writes), start, x)
        openmp.run(writing, parts, (*starts, *places, rows, width))

    _over_rows(memory, np.concatenate([table, lines]).astype(table.dtype), write)
    return sums


def _moments(x: Tensor, memory: Memory) -> np.ndarray:
    from bnkit.ops.kernels import openmp, tasks

    c = memory.shape[1]
    work = tasks.rows_moments_task(TYPES[x.dtype])
    found: list[tuple[np.ndarray, list[int]]] = []

    def collect(start: int, rows: int, columns: np.ndarray) -> None:
        width = columns.shape[1]
        parts = openmp.threads(rows * width, rows)
        partial = np.empty((parts, 2, width))
        places = address(x) + start * x.element_size(), partial.ctypes.data
        openmp.run(work, parts, (*places, rows, width, rows_in_cache(x, width)))
        counts = [rows * (i + 1) // parts - rows * i // parts for i in range(parts)]
        groups = partial.reshape(parts, 2, -1, c).transpose(0, 2, 1, 3).reshape(-1, 2, c)
        found.append((groups, [k for k in counts for _ in range(width // c)]))

    _over_rows(memory, np.empty((1, c)), collect)
    groups = np.concatenate([g for g, _ in found])
    return _merged(groups, [k for _, counts in found for k in counts])


def _from(places: tuple[int, ...], start: int, x: Tensor) -> tuple[int, ...]:
    """The addresses of value number `start`; what is not given stays not given."""
    return tuple(p + start * x.element_size() if p else 0 for p in places)


def _over_rows(
    memory: Memory, table: np.ndarray, body: Callable[[int, int, np.ndarray], None]
) -> None:
    """Call `body(start, rows, columns)` for all rows: folded to a useful width, then the rest."""
    n, c, s = memory.shape
    m = n * s
    fold = max(1, min(_WIDTH // c, m))
    whole = m // fold
    body(0, whole, np.tile(table, (1, fold)) if fold > 1 else table)
    rest = m - whole * fold
    if rest:
        body(whole * fold * c, rest, table)


def _merged(partial: np.ndarray, counts: list[int]) -> np.ndarray:
    """Merge of all parts at once: the mean of means, and m2 within plus m2 between."""
    if len(counts) == 1:
        return partial[0]
    weights = np.asarray(counts, np.float64)[:, None]
    means = partial[:, 0]
    shift = means[0]
    mean = shift + (weights * (means - shift)).sum(0) / weights.sum()
    return np.stack([mean, partial[:, 1].sum(0) + (weights * (means - mean) ** 2).sum(0)])

"""The CPU kernel: Numba loops over planes (NCHW) or rows (NHWC) of the memory of a tensor."""

from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnkit.ops.kernels import threads
from bnkit.ops.registry import Affine, Backward, Kernel, Train

_DTYPES = (torch.float32, torch.float64)
_NARROW = (torch.float16, torch.bfloat16)
# A block of planes is read twice and should stay in a core's share of the cache (bytes).
_PLANES_IN_CACHE = 2 << 20
_ROWS_IN_CACHE = 1 << 18
# Rows at least this wide keep the vector units busy.
_WIDTH = 128
_INSTALLED = find_spec("numba") is not None


class _Memory(NamedTuple):
    """How the values lie in memory: planes `(n, c, s)`, or rows `(m, c)`."""

    rows: bool
    shape: tuple[int, int, int]


def refuses(x: Tensor, residual: Tensor | None = None) -> str | None:
    """Why these loops cannot run an input, or None.

    Args:
        x: The input.
        residual: What is added before the activation.

    Returns:
        The reason.
    """
    problems = {
        "Numba is not installed": not _INSTALLED,
        f"it runs on the CPU, x is on {x.device}": x.device.type != "cpu",
        f"it has no loop for {x.dtype}": x.dtype not in (*_DTYPES, *_NARROW),
        "x is empty": x.numel() == 0,
        f"x of {x.ndim} dimensions has no channels": x.ndim < 2,
    }
    for reason, hit in problems.items():
        if hit:
            return reason
    memory = _memory(x)
    if memory is None:
        return f"x is neither contiguous nor channels-last (strides {tuple(x.stride())})"
    if residual is not None and not _same_memory(x, residual):
        return "the residual does not lie in memory as x does, or has another dtype"
    return None


def train(x: Tensor, affine: Affine) -> Train:
    """Training forward."""
    if x.dtype in _NARROW:
        y, mean, m2 = train(x.float(), _widened(affine))
        return Train(y.to(x.dtype), mean, m2)
    memory = _known(x)
    y = torch.empty_like(x)
    parameters = _parameters(affine, memory.shape[1], x.dtype)
    passes = _train_rows if memory.rows else _train_planes
    statistics = passes(x, y, affine, memory, parameters)
    mean, m2 = torch.from_numpy(statistics).to(x.dtype).unbind(0)
    return Train(y, mean, m2)


def evaluate(x: Tensor, mean: Tensor, var: Tensor, affine: Affine) -> Tensor:
    """Inference forward."""
    if x.dtype in _NARROW:
        wide = (mean.float(), var.float())
        return evaluate(x.float(), *wide, _widened(affine)).to(x.dtype)
    memory = _known(x)
    n, c, s = memory.shape
    y = torch.empty_like(x)
    table = np.empty((3, c), _numpy_dtype(x))
    parameters = _parameters(affine, c, x.dtype)
    table[0] = mean.numpy()
    table[1] = parameters[0] / np.sqrt(var.numpy().astype(np.float64) + affine.eps)
    table[2] = parameters[1]
    if memory.rows:
        _forward_rows(x, y, affine, (n * s, c), table)
    else:
        from bnkit.ops.kernels.planes import planes_forward

        loop = planes_forward(affine.act.name, affine.residual is not None)
        arrays = _flat(x), _added(affine, x), _flat(y)
        parts = threads.split(c, threads.workers(x.numel()))
        threads.run(
            lambda i: loop(*arrays, memory.shape, parts[i], table, _slope(affine, x)), parts
        )
    return y


def backward(grad_y: Tensor, x: Tensor, affine: Affine, mean: Tensor, m2: Tensor) -> Backward:
    """Gradients of the training form."""
    if x.dtype in _NARROW:
        g = backward(grad_y.float(), x.float(), _widened(affine), mean, m2)
        residual = None if g.residual is None else g.residual.to(x.dtype)
        return g._replace(x=g.x.to(x.dtype), residual=residual)
    memory = _known(x)
    n, c, s = memory.shape
    if not _same_memory(x, grad_y):
        grad_y = torch.empty_like(x).copy_(grad_y)
    parameters = _parameters(affine, c, x.dtype)
    invstd = 1 / np.sqrt(m2.numpy().astype(np.float64) / (n * s) + affine.eps)
    table = np.stack([mean.numpy(), parameters[0] * invstd, parameters[1]]).astype(_numpy_dtype(x))
    outputs = torch.empty_like(x), None if affine.residual is None else torch.empty_like(x)
    passes = _backward_rows if memory.rows else _backward_planes
    sums = passes((grad_y, x, affine), outputs, memory, (table, invstd))
    by_weight, by_bias = torch.from_numpy(sums).to(x.dtype).unbind(0)
    return Backward(outputs[0], by_weight, by_bias, outputs[1])


def _train_planes(
    x: Tensor, y: Tensor, affine: Affine, memory: _Memory, parameters: np.ndarray
) -> np.ndarray:
    from bnkit.ops.kernels.planes import planes_train

    c = memory.shape[1]
    loop = planes_train(affine.act.name, affine.residual is not None)
    statistics, table = np.empty((2, c)), np.empty((3, c), parameters.dtype)
    arrays = _flat(x), _added(affine, x), _flat(y)
    parts = threads.split(c, threads.workers(x.numel()))
    block = _planes_in_cache(x, memory)
    results = parameters, affine.eps, statistics, table, _slope(affine, x)
    threads.run(lambda i: loop(*arrays, memory.shape, parts[i], block, *results), parts)
    return statistics


def _train_rows(
    x: Tensor, y: Tensor, affine: Affine, memory: _Memory, parameters: np.ndarray
) -> np.ndarray:
    from bnkit.ops.kernels.rows import rows_moments

    n, c, s = memory.shape
    fold, whole = _folded(n * s, c)
    flat, width = _flat(x), fold * c
    parts = threads.split(whole, threads.workers(x.numel()))
    partial = np.empty((len(parts) + 1, 2, width))
    block = _rows_in_cache(x, width)
    threads.run(lambda i: rows_moments(flat, parts[i], block, *partial[i]), parts)
    counts = [b - a for a, b in parts]
    rest = n * s - whole * fold
    mean, m2 = _merged_columns(partial[: len(parts)], counts, fold)
    if rest:
        rows_moments(flat[whole * width :], (0, rest), block, *partial[-1, :, :c])
        tail = np.stack([np.stack([mean, m2]), partial[-1, :, :c]])
        mean, m2 = _merged(tail, [whole * fold, rest])
    table = np.empty((3, c), parameters.dtype)
    table[0], table[2] = mean, parameters[1]
    table[1] = parameters[0] / np.sqrt(m2 / (n * s) + affine.eps)
    _forward_rows(x, y, affine, (n * s, c), table)
    return np.stack([mean, m2])


def _forward_rows(
    x: Tensor, y: Tensor, affine: Affine, size: tuple[int, int], table: np.ndarray
) -> None:
    from bnkit.ops.kernels.rows import rows_forward

    m, c = size
    loop = rows_forward(affine.act.name, affine.residual is not None)
    arrays, slope = (_flat(x), _added(affine, x), _flat(y)), _slope(affine, x)

    def body(part: tuple[int, int], start: int, columns: np.ndarray) -> None:
        loop(*(a[start:] for a in arrays), part, columns, slope)

    _over_rows(x, (m, c), table, body)


def _backward_planes(
    given: tuple[Tensor, Tensor, Affine],
    outputs: tuple[Tensor, Tensor | None],
    memory: _Memory,
    tables: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    from bnkit.ops.kernels.planes import planes_backward

    grad_y, x, affine = given
    table, invstd = tables
    c = memory.shape[1]
    loop = planes_backward(affine.act.name, affine.residual is not None)
    sums = np.empty((2, c))
    arrays = _flat(grad_y), _flat(x), _added(affine, x), *_flat_outputs(outputs)
    parts = threads.split(c, threads.workers(x.numel()))
    block = max(1, _planes_in_cache(x, memory) // 2)
    rest = table, invstd, sums, _slope(affine, x)
    threads.run(lambda i: loop(*arrays, memory.shape, parts[i], block, *rest), parts)
    return sums


def _backward_rows(
    given: tuple[Tensor, Tensor, Affine],
    outputs: tuple[Tensor, Tensor | None],
    memory: _Memory,
    tables: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    from bnkit.ops.kernels.rows import rows_backward, rows_sums

    grad_y, x, affine = given
    table, invstd = tables
    n, c, s = memory.shape
    kind = affine.act.name, affine.residual is not None
    slope = _slope(affine, x)
    sum_loop, grad_loop = rows_sums(*kind), rows_backward(*kind)
    reads = _flat(grad_y), _flat(x), _added(affine, x)
    writes = _flat_outputs(outputs)
    found: list[np.ndarray] = []

    def add(part: tuple[int, int], start: int, columns: np.ndarray) -> None:
        width = columns.shape[1]
        sums = np.empty((2, width))
        block = _rows_in_cache(x, width)
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


def _memory(x: Tensor) -> _Memory | None:
    n, c = x.shape[:2]
    s = x.numel() // (n * c)
    if x.is_contiguous():
        return _Memory(rows=s == 1, shape=(n, c, s))
    if x.movedim(1, -1).is_contiguous():
        return _Memory(rows=True, shape=(n, c, s))
    return None


def _known(x: Tensor) -> _Memory:
    memory = _memory(x)
    if memory is None:  # the registry asks `refuses` first
        msg = f"strides {tuple(x.stride())}"
        raise ValueError(msg)
    return memory


def _same_memory(x: Tensor, other: Tensor) -> bool:
    alike = other.shape == x.shape and other.dtype == x.dtype and other.device == x.device
    return alike and other.stride() == x.stride()


def _flat(x: Tensor) -> np.ndarray:
    array = x.detach().numpy()
    if not x.is_contiguous():
        array = np.moveaxis(array, 1, -1)
    return array.reshape(-1)


def _flat_outputs(outputs: tuple[Tensor, Tensor | None]) -> tuple[np.ndarray, np.ndarray]:
    first, second = outputs
    return _flat(first), _EMPTY[first.dtype] if second is None else _flat(second)


def _added(affine: Affine, x: Tensor) -> np.ndarray:
    return _EMPTY[x.dtype] if affine.residual is None else _flat(affine.residual)


def _parameters(affine: Affine, c: int, dtype: torch.dtype) -> np.ndarray:
    rows = np.empty((2, c), _EMPTY[dtype].dtype)
    for row, (given, default) in zip(rows, ((affine.weight, 1), (affine.bias, 0)), strict=True):
        row[:] = default if given is None else given.detach().to(dtype).numpy()
    return rows


def _widened(affine: Affine) -> Affine:
    residual = affine.residual
    return affine._replace(residual=None if residual is None else residual.float())


def _slope(affine: Affine, x: Tensor) -> Any:
    return _numpy_dtype(x).type(affine.act.slope)


def _numpy_dtype(x: Tensor) -> np.dtype:
    return _EMPTY[x.dtype].dtype


def _planes_in_cache(x: Tensor, memory: _Memory) -> int:
    n, _, s = memory.shape
    return max(1, min(16, _PLANES_IN_CACHE // (n * s * x.element_size())))


def _rows_in_cache(x: Tensor, width: int) -> int:
    return max(16, min(256, _ROWS_IN_CACHE // (width * x.element_size())))


_EMPTY = {torch.float32: np.empty(0, np.float32), torch.float64: np.empty(0, np.float64)}

NUMBA = Kernel("numba", refuses, train, backward, evaluate)

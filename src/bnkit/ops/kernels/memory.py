"""How a tensor lies in memory, and its values as the loops take them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnkit.ops.registry import Affine

TYPES = {torch.float32: np.float32, torch.float64: np.float64}
# Below this many values a parallel region costs more than it saves.
SERIAL = 1 << 15
# A block of planes is read twice and should stay in a core's share of the cache (bytes).
_PLANES_IN_CACHE = 2 << 20
_ROWS_IN_CACHE = 1 << 18


class Memory(NamedTuple):
    """How the values lie in memory: planes `(n, c, s)`, or rows `(m, c)`."""

    rows: bool
    shape: tuple[int, int, int]


def memory_of(x: Tensor) -> Memory | None:
    """Planes or rows, or None for a layout that is neither."""
    n, c = x.shape[:2]
    s = x.numel() // (n * c)
    if x.is_contiguous():
        return Memory(rows=s == 1, shape=(n, c, s))
    if x.movedim(1, -1).is_contiguous():
        return Memory(rows=True, shape=(n, c, s))
    return None


def known_memory(x: Tensor) -> Memory:
    """As `memory_of`, for an input that the kernel does not refuse."""
    memory = memory_of(x)
    if memory is None:  # the registry asks `refuses` first
        msg = f"strides {tuple(x.stride())}"
        raise ValueError(msg)
    return memory


def same_memory(x: Tensor, other: Tensor) -> bool:
    """Whether two tensors can be read side by side."""
    alike = other.shape == x.shape and other.dtype == x.dtype and other.device == x.device
    return alike and other.stride() == x.stride() and not other.is_neg()


def parameters_of(affine: Affine, c: int, dtype: torch.dtype) -> np.ndarray:
    """Rows weight and bias in a dtype, 1 and 0 where not given."""
    rows = np.empty((2, c), TYPES[dtype])
    for row, (given, default) in zip(rows, ((affine.weight, 1), (affine.bias, 0)), strict=True):
        row[:] = default if given is None else given.detach().to(dtype).numpy()
    return rows


def planes_in_cache(x: Tensor, memory: Memory) -> int:
    """How many channels to work through together."""
    n, _, s = memory.shape
    return max(1, min(16, _PLANES_IN_CACHE // (n * s * x.element_size())))


def rows_in_cache(x: Tensor, width: int) -> int:
    """How many rows to sum in the precision of x."""
    return max(16, min(256, _ROWS_IN_CACHE // (width * x.element_size())))


def address(tensor: Tensor | None) -> int:
    """Where a tensor's values start; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    """`address` of each."""
    return tuple(address(t) for t in tensors)


def variant_of(x: Tensor, affine: Affine) -> tuple[type, str, bool]:
    """What tells the variants of a loop apart: dtype, activation, residual."""
    return TYPES[x.dtype], affine.act.name, affine.residual is not None


def converted(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """A parameter in the dtype of x, in one piece."""
    if parameter is None or (parameter.dtype is x.dtype and parameter.is_contiguous()):
        return parameter
    return parameter.to(x.dtype).contiguous()


def numbers_of(affine: Affine) -> np.ndarray:
    """What a task needs besides addresses and sizes: eps and the slope of the leaky ReLU."""
    return np.array([affine.eps, affine.act.slope])

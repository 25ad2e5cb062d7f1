"""How a tensor lies in memory, and its values as the loops take them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnkit.ops.registry import Affine

TYPES: dict[torch.dtype, tuple[type, type]] = {
    torch.float32: (np.float32, np.float32),
    torch.float64: (np.float64, np.float64),
    torch.float16: (np.int16, np.float32),
    torch.bfloat16: (np.uint16, np.float32),
}
"""As what the values are stored, and computed; the integers stand for what Numba lacks."""


class Memory(NamedTuple):
    """How the values lie in memory: planes `(n, c, s)`, or rows `(n * s, c)`."""

    rows: bool
    shape: tuple[int, int, int]


def memory_of(x: Tensor) -> Memory | None:
    """Planes or rows, or None for a layout that is neither."""
    n, c = x.shape[:2]
    s = x.numel() // (n * c)
    if x.is_contiguous():
        return Memory(s == 1, (n, c, s))
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


def addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    """Where the values of each tensor start; 0 for None."""
    return tuple(0 if t is None else t.data_ptr() for t in tensors)


def variant_of(x: Tensor, affine: Affine) -> tuple[type, type, str, bool]:
    """What tells the variants of a loop apart: dtypes, activation, residual."""
    return *TYPES[x.dtype], affine.act.name, affine.residual is not None


def converted(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """A parameter in the precision in which x is computed, in one piece."""
    if parameter is None:
        return None
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    if parameter.dtype is dtype and parameter.is_contiguous():
        return parameter
    return parameter.to(dtype).contiguous()

"""How a tensor lies in memory, and its values as the loops take them."""

import math
from functools import lru_cache
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
    return _memory(x.shape, x.stride())


@lru_cache(maxsize=4096)
def _memory(shape: tuple[int, ...], stride: tuple[int, ...]) -> Memory | None:
    n, c, *spatial = shape
    s = math.prod(spatial)
    if _dense(shape, stride):
        return Memory(s == 1, (n, c, s))
    last = [*range(2, len(shape)), 1]
    if _dense((n, *(shape[i] for i in last)), (stride[0], *(stride[i] for i in last))):
        return Memory(rows=True, shape=(n, c, s))
    return None


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether values lie one after the other, the last dimension innermost."""
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


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


def addresses(*tensors: Tensor | None) -> list[int]:
    """Where the values of each tensor start; 0 for None."""
    return [0 if t is None else t.data_ptr() for t in tensors]


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

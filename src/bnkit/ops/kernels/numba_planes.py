"""Planes over several threads: each takes a range of channels."""

import numpy as np
from torch import Tensor

from bnkit.ops.kernels.memory import (
    Memory,
    addresses,
    numbers_of,
    planes_in_cache,
    variant_of,
)
from bnkit.ops.registry import Affine


def train_planes(
    x: Tensor, y: Tensor, affine: Affine, memory: Memory, parameters: np.ndarray
) -> np.ndarray:
    """Training forward into y; returns mean and m2."""
    from bnkit.ops.kernels import openmp, tasks

    n, c, s = memory.shape
    work = tasks.train_planes_task(*variant_of(x, affine))
    statistics, table, numbers = (
        np.empty((2, c)),
        np.empty_like(parameters, shape=(3, c)),
        numbers_of(affine),
    )
    arrays = parameters, statistics, table, numbers
    places = *addresses(x, affine.residual, y), *(a.ctypes.data for a in arrays)
    sizes = n, c, s, planes_in_cache(x, memory)
    openmp.run(work, openmp.threads(x.numel(), c), (*places, *sizes))
    return statistics


def forward_planes(x: Tensor, y: Tensor, affine: Affine, memory: Memory, table: np.ndarray) -> None:
    """Inference forward into y, from rows mean, scale and shift of `table`."""
    from bnkit.ops.kernels import openmp, tasks

    c = memory.shape[1]
    work = tasks.forward_planes_task(*variant_of(x, affine))
    numbers = numbers_of(affine)
    places = *addresses(x, affine.residual, y), table.ctypes.data, numbers.ctypes.data
    openmp.run(work, openmp.threads(x.numel(), c), (*places, *memory.shape))


def backward_planes(
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
    work = tasks.backward_planes_task(*variant_of(x, affine))
    sums, numbers = np.empty((2, c)), numbers_of(affine)
    arrays = table, invstd, sums, numbers
    places = addresses(grad_y, x, affine.residual, *outputs)
    block = max(1, planes_in_cache(x, memory) // 2)
    sizes = *(a.ctypes.data for a in arrays), n, c, s, block
    openmp.run(work, openmp.threads(x.numel(), c), (*places, *sizes))
    return sums

"""The CPU kernel on groups of samples that lie one behind the other in memory.

Each group is a batch of its own for the loops, at its own address: nothing is split, copied or
concatenated.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bnkit.ops.kernels import numba_cpu
from bnkit.ops.kernels.memory import TYPES, addresses, converted, known_memory, same_memory
from bnkit.ops.registry import Affine

Bounds = tuple[int, ...]


def takes(x: Tensor) -> bool:
    """Whether these loops can run an input: samples must lie one behind the other."""
    if numba_cpu.refuses(x) is not None:
        return False
    return x.stride(0) == x[0].numel()


def train(x: Tensor, affine: Affine, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Training forward of each group.

    Args:
        x: Batch `(N, C, ...)`.
        affine: Scale and shift, without residual and activation.
        bounds: Where the groups begin, and N.

    Returns:
        `y`, and mean and m2 of the groups, shape `(groups, 2, c)`.
    """
    openmp, regions, _ = numba_cpu.modules()
    y = torch.empty_like(x)
    found = numba_cpu.computed(x, (len(bounds) - 1, 2, x.shape[1]))
    given = converted(x, affine.weight), converted(x, affine.bias)
    region = regions.train_region(*TYPES[x.dtype], affine.act.name, False)  # noqa: FBT003
    start, into, weight, bias, results = addresses(x, y, *given, found)
    rest = *numba_cpu.NO_UPDATE[:-1], affine.eps, affine.act.slope, numba_cpu.NO_UPDATE[-1]
    for step, number, shape, (parts, partial) in _groups(x, bounds):
        places = start + step, 0, into + step, weight, bias, results + number, partial
        openmp.run(region, parts, regions.TRAIN.pack(*places, *shape, *rest))
    return y, found


def backward(
    grad_y: Tensor, x: Tensor, affine: Affine, found: Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, weight and bias; the latter are sums over the groups.

    Args:
        grad_y: Shaped like x.
        x: Batch.
        affine: As in `train`.
        found: What `train` returned.
        bounds: As in `train`.

    Returns:
        The gradients.
    """
    openmp, regions, _ = numba_cpu.modules()
    if not same_memory(x, grad_y):
        grad_y = torch.empty_like(x).copy_(grad_y)
    grad_x = torch.empty_like(x)
    by_parameters = numba_cpu.computed(x, tuple(found.shape))
    given = converted(x, affine.weight), converted(x, affine.bias)
    region = regions.backward_region(*TYPES[x.dtype], affine.act.name, False)  # noqa: FBT003
    at, start, into, weight, bias, means, sums = addresses(
        grad_y, x, grad_x, *given, found, by_parameters
    )
    one = found.element_size() * x.shape[1]
    for step, number, shape, (parts, partial) in _groups(x, bounds):
        statistics = means + number, means + number + one
        places = at + step, start + step, 0, into + step, 0, weight, bias, *statistics
        numbers = *shape, False, affine.eps, affine.act.slope
        region_of = regions.BACKWARD.pack(*places, sums + number, partial, *numbers)
        openmp.run(region, parts, region_of)
    by_weight, by_bias = by_parameters.sum(0)
    return grad_x, by_weight, by_bias


def _groups(x: Tensor, bounds: Bounds) -> Iterator[tuple[int, int, tuple, tuple[int, Any]]]:
    """For each group: offsets in bytes of its values and statistics, its shape, and the threads."""
    memory = known_memory(x)
    _, c, s = memory.shape
    largest = max(b - a for a, b in pairwise(bounds))
    parts, partial = numba_cpu.threads_for(
        x[:largest], known_memory(x)._replace(shape=(largest, c, s))
    )
    threads = parts, 0 if partial is None else partial.data_ptr()
    sample = x.element_size() * c * s
    statistics = 2 * c * (8 if x.dtype is torch.float64 else 4)
    for number, (a, b) in enumerate(pairwise(bounds)):
        yield a * sample, number * statistics, (b - a, c, s, memory.rows), threads
    del partial  # the loops have read it until here

"""The CPU kernel on a batch of which only some positions count, where they lie in memory."""

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnkit.ops.kernels import numba_cpu
from bnkit.ops.kernels.memory import TYPES, addresses, converted, known_memory, same_memory
from bnkit.ops.registry import Affine, Train


@dataclass(frozen=True, slots=True)
class Kept:
    """Which positions count.

    Attributes:
        mask: Bool, shape `(n, 1, *spatial)`, contiguous.
        count: How many are True, at least 1.
    """

    mask: Tensor
    count: int


@cache
def _regions() -> ModuleType:
    from bnkit.ops.kernels import masked_regions

    return masked_regions


class Plan(NamedTuple):
    """How the loops know what counts.

    Attributes:
        kind: Of the loops.
        there: Numbers of the rows, or for each position whether it counts; None = hulls say it.
        hulls: First and past the last position of each sample that counts, for planes.
    """

    kind: str
    there: Tensor | None
    hulls: Tensor | None


def plan(x: Tensor, kept: Kept) -> Plan:
    """What the loops need to know of a mask.

    Args:
        x: Batch `(N, C, ...)`, which the CPU kernel does not refuse.
        kept: Which positions count.

    Returns:
        For `train` and `backward`.
    """
    openmp, *_ = numba_cpu.modules()
    memory = known_memory(x)
    n, _, s = memory.shape
    if memory.rows:
        found = torch.empty(n * s, dtype=torch.int64)
        places = *addresses(kept.mask, found), 0, 0
    else:
        found = torch.empty(2 * n + 1, dtype=torch.int64)
        hulls, size = found.data_ptr(), found.element_size()
        places = kept.mask.data_ptr(), 0, hulls, hulls + 2 * n * size
    openmp.run(_regions().look_region(), 1, _regions().LOOK.pack(*places, n, s, kept.count))
    if memory.rows:
        return Plan("rows", found, None)
    if int(found[-1]):
        return Plan("holes", kept.mask.to(numba_cpu.computed(x, ()).dtype), found)
    return Plan("hulls", None, found)


def train(x: Tensor, affine: Affine, plan: Plan, count: int) -> Train:
    """Training forward over what counts; 0 elsewhere.

    Args:
        x: Batch `(N, C, ...)`.
        affine: Scale and shift, without residual and activation.
        plan: Which positions count.
        count: How many do.

    Returns:
        Output and statistics.
    """
    openmp, *_ = numba_cpu.modules()
    memory = known_memory(x)
    y, statistics = torch.empty_like(x), numba_cpu.computed(x, (2, memory.shape[1]))
    parts, partial = numba_cpu.threads_for(x, memory)
    given = converted(x, affine.weight), converted(x, affine.bias)
    places = addresses(x, y, *given, statistics, partial, plan.there, plan.hulls)
    region = _regions().train_region(*TYPES[x.dtype], plan.kind)
    openmp.run(region, parts, _regions().TRAIN.pack(*places, *memory.shape, count, affine.eps))
    return Train(y, statistics)


def backward(
    grad_y: Tensor, x: Tensor, affine: Affine, statistics: Any, known: tuple[Plan, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, weight and bias of the training form.

    Args:
        grad_y: Shaped like x; what stands where nothing counts is not used.
        x: Batch.
        affine: As in `train`.
        statistics: What `train` returned.
        known: The plan, and how many positions count.

    Returns:
        The gradients.
    """
    openmp, *_ = numba_cpu.modules()
    memory = known_memory(x)
    if not same_memory(x, grad_y):
        grad_y = torch.empty_like(x).copy_(grad_y)
    plan, count = known
    grad_x, by_parameters = torch.empty_like(x), numba_cpu.computed(x, (2, memory.shape[1]))
    parts, partial = numba_cpu.threads_for(x, memory)
    given = converted(x, affine.weight), *statistics
    places = addresses(grad_y, x, grad_x, *given, by_parameters, partial, plan.there, plan.hulls)
    region = _regions().backward_region(*TYPES[x.dtype], plan.kind)
    openmp.run(region, parts, _regions().BACKWARD.pack(*places, *memory.shape, count, affine.eps))
    return grad_x, by_parameters[0], by_parameters[1]

"""The CPU kernel: Numba loops over planes (NCHW) or rows (NHWC) of the memory of a tensor."""

from functools import cache, partial
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from bnkit.ops.kernels.memory import (
    TYPES,
    Memory,
    addresses,
    converted,
    known_memory,
    memory_of,
    same_memory,
    variant_of,
)
from bnkit.ops.registry import Affine, Backward, Kernel, Train
from bnkit.ops.update import Update

_INSTALLED = find_spec("numba") is not None
NO_UPDATE = (0, 0, 0, 0, False, 0.0)
"""How an update that is not wanted is described: four addresses, whether to skip, a weight."""


@cache
def modules() -> tuple[ModuleType, ModuleType, ModuleType]:
    """The modules that need Numba, which takes a while to load."""
    from bnkit.ops.kernels import averaging, openmp, regions

    return openmp, regions, averaging


def refuses(x: Tensor, residual: Tensor | None = None) -> str | None:
    """Why these loops cannot run an input, or None.

    Args:
        x: The input.
        residual: What is added before the activation.

    Returns:
        The reason.
    """
    if x.device.type != "cpu":
        return f"it runs on the CPU, x is on {x.device}"
    if x.dtype not in TYPES:
        return f"it has no loop for {x.dtype}"
    if x.ndim < 2 or x.numel() == 0:
        return f"x of shape {tuple(x.shape)} has nothing to normalize"
    if not _INSTALLED:
        return "Numba is not installed"
    if x.layout is not torch.strided or x.is_neg():
        return "the values of x do not lie in memory as they are (layout, or a pending negation)"
    memory = memory_of(x)
    if memory is None:
        return f"x is neither contiguous nor channels-last (strides {tuple(x.stride())})"
    if residual is not None and not same_memory(x, residual):
        return "the residual does not lie in memory as x does, or has another dtype"
    return None


def takes(statistic: Tensor) -> bool:
    """Whether `commit` can write to a buffer."""
    wide = statistic.dtype in (torch.float32, torch.float64)
    return _INSTALLED and wide and statistic.device.type == "cpu"


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and m2 of each channel in float64: what is merged with other batches or ranks."""
    openmp, regions, _ = modules()
    memory = known_memory(x)
    n, c, s = memory.shape
    parts, partial = threads_for(x, memory)
    found = x.new_empty((2, c), dtype=torch.float64)
    places = addresses(x, found, partial)
    numbers = regions.MOMENTS.pack(*places, n, c, s, memory.rows)
    openmp.run(regions.moments_region(*TYPES[x.dtype]), parts, numbers)
    return found[0], found[1]


def train(
    x: Tensor, affine: Affine, update: Update | None = None, out: Tensor | None = None
) -> Train:
    """Training forward; averages the batch into running statistics where asked.

    Args:
        x: Input.
        affine: What follows the normalization.
        update: What to do with the statistics.
        out: Where to write, lying in memory as x does, or x itself; None allocates.

    Returns:
        Output and statistics.
    """
    openmp, regions, _ = modules()
    memory = known_memory(x)
    n, c, s = memory.shape
    y = torch.empty_like(x) if out is None else out
    parts, partial = threads_for(x, memory)
    statistics = computed(x, (2, c))
    # named, so that copies live until the loop has read them
    given = converted(x, affine.weight), converted(x, affine.bias)
    places = addresses(x, affine.residual, y, *given, statistics, partial)
    *buffers, weight = NO_UPDATE if update is None else _described(update)
    numbers = n, c, s, memory.rows, *buffers, affine.eps, affine.act.slope, weight
    region = regions.train_region(*variant_of(x, affine))
    openmp.run(region, parts, regions.TRAIN.pack(*places, *numbers))
    if update is not None:
        _changed(update)
    return Train(y, statistics)


def evaluate(x: Tensor, mean: Tensor, var: Tensor, affine: Affine) -> Tensor:
    """Inference forward."""
    openmp, regions, _ = modules()
    memory = known_memory(x)
    y = torch.empty_like(x)
    parts, _ = threads_for(x, memory)
    given = tuple(converted(x, t) for t in (affine.weight, affine.bias, mean, var))
    places = addresses(x, affine.residual, y, *given)
    numbers = *memory.shape, memory.rows, affine.eps, affine.act.slope
    region = regions.evaluate_region(*variant_of(x, affine))
    openmp.run(region, parts, regions.EVALUATE.pack(*places, *numbers))
    return y


def backward(
    grad_y: Tensor,
    x: Tensor,
    affine: Affine,
    mean: Tensor,
    m2: Tensor,
    *,
    frozen: bool = False,
) -> Backward:
    """Gradients of the training form; `frozen`: of the form with constants as statistics."""
    openmp, regions, _ = modules()
    memory = known_memory(x)
    if not same_memory(x, grad_y):
        grad_y = torch.empty_like(x).copy_(grad_y)
    parts, partial = threads_for(x, memory)
    grad_x = torch.empty_like(x)
    grad_residual = None if affine.residual is None else torch.empty_like(x)
    by_parameters = computed(x, (2, memory.shape[1]))
    given = tuple(converted(x, t) for t in (affine.weight, affine.bias, mean, m2))
    places = addresses(
        grad_y, x, affine.residual, grad_x, grad_residual, *given, by_parameters, partial
    )
    numbers = *memory.shape, memory.rows, frozen, affine.eps, affine.act.slope
    region = regions.backward_region(*variant_of(x, affine))
    openmp.run(region, parts, regions.BACKWARD.pack(*places, *numbers))
    return Backward(grad_x, by_parameters[0], by_parameters[1], grad_residual)


def commit(update: Update, batch: tuple[Tensor, Tensor, int]) -> None:
    """Average a batch into running statistics of the same dtype, in place.

    Args:
        update: The buffers, and how.
        batch: Mean, m2 and count.
    """
    openmp, _, averaging = modules()
    mean, m2, count = batch
    numbers = *addresses(mean, m2), mean.numel(), count, *_described(update)
    region = averaging.commit_region(TYPES[mean.dtype][1])
    openmp.run(region, 1, averaging.COMMIT.pack(*numbers))
    _changed(update)


def _described(update: Update) -> tuple:
    weight = -1.0 if update.ema_weight is None else update.ema_weight
    return *addresses(*update.buffers), update.nonfinite != "propagate", weight


def _changed(update: Update) -> None:
    """Tell autograd, as somebody else's graph may hold the old values."""
    written = [b for b in update.buffers if b is not None and not b.is_inference()]
    torch.autograd.graph.increment_version(written)


def threads_for(x: Tensor, memory: Memory) -> tuple[int, Tensor | None]:
    """How many threads, and where those of rows leave what they found."""
    n, c, s = memory.shape
    parts = modules()[0].threads(n * c * s, n * s if memory.rows else c)
    shared = memory.rows and parts > 1
    return parts, x.new_empty((parts, 2, c), dtype=torch.float64) if shared else None


def computed(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty tensor in the precision of the computation."""
    return x.new_empty(shape, dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)


NUMBA = Kernel(
    "numba",
    refuses,
    train,
    backward,
    evaluate,
    moments,
    updates=True,
    frozen=partial(backward, frozen=True),
)

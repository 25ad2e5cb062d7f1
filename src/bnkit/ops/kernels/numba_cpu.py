"""The CPU kernel: Numba loops over planes (NCHW) or rows (NHWC) of the memory of a tensor."""

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from bnkit.ops.kernels.memory import (
    SERIAL,
    TYPES,
    Memory,
    address,
    known_memory,
    memory_of,
    parameters_of,
    same_memory,
)
from bnkit.ops.kernels.numba_one_call import backward_at_once, evaluate_at_once, train_at_once
from bnkit.ops.kernels.numba_planes import backward_planes, forward_planes, train_planes
from bnkit.ops.kernels.numba_rows import backward_rows, forward_rows, train_rows
from bnkit.ops.registry import Affine, Backward, Kernel, Train

_NARROW = (torch.float16, torch.bfloat16)
_INSTALLED = find_spec("numba") is not None


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
    if x.dtype not in TYPES and x.dtype not in _NARROW:
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
    return _INSTALLED and statistic.device.type == "cpu" and statistic.dtype in TYPES


def train(x: Tensor, affine: Affine) -> Train:
    """Training forward."""
    if x.dtype in _NARROW:
        y, mean, m2 = train(x.float(), _widened(affine))
        return Train(y.to(x.dtype), mean, m2)
    memory = known_memory(x)
    y = torch.empty_like(x)
    if _one_call(x, memory):
        return train_at_once(x, y, affine, memory)
    parameters = parameters_of(affine, memory.shape[1], x.dtype)
    passes = train_rows if memory.rows else train_planes
    statistics = passes(x, y, affine, memory, parameters)
    mean, m2 = torch.from_numpy(statistics).to(x.dtype).unbind(0)
    return Train(y, mean, m2)


def evaluate(x: Tensor, mean: Tensor, var: Tensor, affine: Affine) -> Tensor:
    """Inference forward."""
    if x.dtype in _NARROW:
        wide = (mean.float(), var.float())
        return evaluate(x.float(), *wide, _widened(affine)).to(x.dtype)
    memory = known_memory(x)
    c = memory.shape[1]
    y = torch.empty_like(x)
    if _one_call(x, memory):
        return evaluate_at_once(x, y, (mean, var), affine, memory)
    table = np.empty((3, c), TYPES[x.dtype])
    parameters = parameters_of(affine, c, x.dtype)
    table[0] = mean.numpy()
    table[1] = parameters[0] / np.sqrt(var.numpy().astype(np.float64) + affine.eps)
    table[2] = parameters[1]
    (forward_rows if memory.rows else forward_planes)(x, y, affine, memory, table)
    return y


def backward(grad_y: Tensor, x: Tensor, affine: Affine, mean: Tensor, m2: Tensor) -> Backward:
    """Gradients of the training form."""
    if x.dtype in _NARROW:
        g = backward(grad_y.float(), x.float(), _widened(affine), mean, m2)
        residual = None if g.residual is None else g.residual.to(x.dtype)
        return g._replace(x=g.x.to(x.dtype), residual=residual)
    memory = known_memory(x)
    n, c, s = memory.shape
    if not same_memory(x, grad_y):
        grad_y = torch.empty_like(x).copy_(grad_y)
    if _one_call(x, memory):
        return backward_at_once((grad_y, x, affine), (mean, m2), memory)
    parameters = parameters_of(affine, c, x.dtype)
    invstd = 1 / np.sqrt(m2.numpy().astype(np.float64) / (n * s) + affine.eps)
    table = np.stack([mean.numpy(), parameters[0] * invstd, parameters[1]]).astype(TYPES[x.dtype])
    outputs = torch.empty_like(x), None if affine.residual is None else torch.empty_like(x)
    passes = backward_rows if memory.rows else backward_planes
    sums = passes((grad_y, x, affine), outputs, memory, (table, invstd))
    by_weight, by_bias = torch.from_numpy(sums).to(x.dtype).unbind(0)
    return Backward(outputs[0], by_weight, by_bias, outputs[1])


def commit(
    buffers: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    batch: tuple[Tensor, Tensor, int],
    weight: float,
    *,
    skip: bool,
) -> bool:
    """Average a batch into running statistics of the same dtype, in place.

    Args:
        buffers: Running mean and variance, counter of batches, counter of those left out.
        batch: Mean, m2 and count.
        weight: Of the new batch; below 0 stands for 1 / counter.
        skip: Leave a batch with NaN or infinity out.

    Returns:
        Whether the batch was finite.
    """
    from bnkit.ops.kernels.serial import commit_serial

    mean, m2, count = batch
    run = commit_serial(TYPES[mean.dtype])
    addresses = (address(b) for b in buffers)
    done = run(mean.data_ptr(), m2.data_ptr(), mean.numel(), count, *addresses, weight, skip)
    # autograd must know that somebody else's graph may hold the old values
    written = [b for b in buffers if b is not None and not b.is_inference()]
    torch.autograd.graph.increment_version(written)
    return done


def _one_call(x: Tensor, memory: Memory) -> bool:
    """Whether one thread and one compiled call do best; many rows gain from folding."""
    values = x.numel()
    return values < SERIAL or (not memory.rows and torch.get_num_threads() == 1)


def _widened(affine: Affine) -> Affine:
    residual = affine.residual
    return affine._replace(residual=None if residual is None else residual.float())


NUMBA = Kernel("numba", refuses, train, backward, evaluate)

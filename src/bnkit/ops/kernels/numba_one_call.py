"""Small tensors: one compiled call does everything."""

import torch
from torch import Tensor

from bnkit.ops.kernels.memory import (
    Memory,
    addresses,
    converted,
    planes_in_cache,
    rows_in_cache,
    variant_of,
)
from bnkit.ops.registry import Affine, Backward, Train


def train_at_once(x: Tensor, y: Tensor, affine: Affine, memory: Memory) -> Train:
    """Training forward into y."""
    from bnkit.ops.kernels.serial import train_serial

    n, c, s = memory.shape
    run = train_serial(*variant_of(x, affine))
    weight, bias = converted(x, affine.weight), converted(x, affine.bias)
    statistics = x.new_empty((2, c))
    places = addresses(x, affine.residual, y, weight, bias, statistics)
    block = rows_in_cache(x, c) if memory.rows else planes_in_cache(x, memory)
    run(*places, n, c, s, memory.rows, block, affine.eps, affine.act.slope)
    return Train(y, *statistics.unbind(0))


def evaluate_at_once(
    x: Tensor, y: Tensor, statistics: tuple[Tensor, Tensor], affine: Affine, memory: Memory
) -> Tensor:
    """Inference forward into y."""
    from bnkit.ops.kernels.serial import eval_serial

    run = eval_serial(*variant_of(x, affine))
    # named, so that copies live until the loop has read them
    given = tuple(converted(x, t) for t in (affine.weight, affine.bias, *statistics))
    places = addresses(x, affine.residual, y, *given)
    run(*places, *memory.shape, memory.rows, affine.eps, affine.act.slope)
    return y


def backward_at_once(
    given: tuple[Tensor, Tensor, Affine], moments: tuple[Tensor, Tensor], memory: Memory
) -> Backward:
    """Gradients of the training form."""
    from bnkit.ops.kernels.serial import backward_serial

    grad_y, x, affine = given
    n, c, s = memory.shape
    run = backward_serial(*variant_of(x, affine))
    weight, bias = converted(x, affine.weight), converted(x, affine.bias)
    grad_x = torch.empty_like(x)
    grad_residual = None if affine.residual is None else torch.empty_like(x)
    by_parameters = x.new_empty((2, c))
    tensors = grad_y, x, affine.residual, grad_x, grad_residual, weight, bias
    places = addresses(*tensors, *moments, by_parameters)
    block = rows_in_cache(x, c) if memory.rows else planes_in_cache(x, memory)
    run(*places, n, c, s, memory.rows, block, affine.eps, affine.act.slope)
    by_weight, by_bias = by_parameters.unbind(0)
    return Backward(grad_x, by_weight, by_bias, grad_residual)

"""Backward pass of batch norm with given statistics, by the kernels of the training one."""

import torch
from torch import Tensor

from bnkit.ops.kernels import reference
from bnkit.ops.plain import is_batched, is_plain
from bnkit.ops.registry import Affine, choose


def takes(grad: Tensor, x: Tensor, affine: Affine) -> bool:
    """Whether `backward` can do it: plain real tensors, no activation, no graph of the result.

    Args:
        grad: Gradient of the output.
        x: Input of the forward pass.
        affine: What followed the normalization.

    Returns:
        Whether it can; otherwise differentiable operations must.
    """
    if torch.is_grad_enabled() or affine.act.name != "none" or not x.is_floating_point():
        return False
    return is_plain((grad, x, affine.weight, affine.bias)) and not is_batched(grad)


def backward(
    grad: Tensor,
    x: Tensor,
    affine: Affine,
    statistics: tuple[Tensor, Tensor],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by input, weight and bias: `grad * scale`, and equations 7 and 8.

    The two sums are those of training with other statistics, so its kernel computes them; its
    gradient by the input has terms that constant statistics have not, and is written over.

    Args:
        grad: Gradient of the output.
        x: Input of the forward pass.
        affine: Weight, bias and eps.
        statistics: Mean and variance.
        wanted: Whether the gradient by input, weight and bias is wanted.

    Returns:
        The gradients, in the dtype of what they belong to; None where not wanted.
    """
    mean, var = statistics
    by_x = by_weight = by_bias = None
    if wanted[1] or wanted[2]:
        m2 = var * max(reference.count(x), 1)
        by_x, by_weight, by_bias, _ = choose(x, None).backward(grad, x, affine, mean, m2)
    by_x = _times_scale(grad, x, affine, var, by_x) if wanted[0] else None
    return by_x, _like(by_weight, affine.weight, wanted[1]), _like(by_bias, affine.bias, wanted[2])


def _times_scale(
    grad: Tensor, x: Tensor, affine: Affine, var: Tensor, into: Tensor | None
) -> Tensor:
    scale = torch.rsqrt(var + affine.eps)
    if affine.weight is not None:
        scale = scale * affine.weight
    spread = reference.spread(scale, x)
    if grad.dtype != spread.dtype:  # 16 bits: multiplied in float32, rounded once
        return (grad * spread).to(x.dtype)
    fits = into is not None and into.dtype == grad.dtype
    return torch.mul(grad, spread, out=into if fits else None)


def _like(grad: Tensor | None, parameter: Tensor | None, wanted: bool) -> Tensor | None:  # noqa: FBT001
    return (
        grad.to(parameter.dtype) if wanted and grad is not None and parameter is not None else None
    )

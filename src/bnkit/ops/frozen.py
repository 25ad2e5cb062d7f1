"""Backward pass of batch norm with given statistics, by kernels."""

import torch
from torch import Tensor

from bnkit.ops.kernels import reference
from bnkit.ops.plain import is_batched, is_plain
from bnkit.ops.registry import Affine, Backward, choose


def takes(grad: Tensor, x: Tensor, affine: Affine) -> bool:
    """Whether `backward` can do it: plain real tensors, no graph of the result.

    Args:
        grad: Gradient of the output.
        x: Input of the forward pass.
        affine: What followed the normalization; with an activation or a residual it needs a
            kernel that knows of constant statistics.

    Returns:
        Whether it can; otherwise differentiable operations must.
    """
    if torch.is_grad_enabled() or not x.is_floating_point() or is_batched(grad):
        return False
    if not is_plain((grad, x, affine.weight, affine.bias, affine.residual)):
        return False
    return not _fused(affine) or choose(x, affine.residual).frozen is not None


def backward(
    grad: Tensor,
    x: Tensor,
    affine: Affine,
    statistics: tuple[Tensor, Tensor],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients by input, weight, bias and residual: `grad * scale`, equations 7 and 8, and `grad`.

    Behind an activation or a residual a kernel computes them all. Otherwise the two sums are
    those of training with other statistics, so its kernel computes them; its gradient by the
    input has terms that constant statistics have not, and is written over.

    Args:
        grad: Gradient of the output.
        x: Input of the forward pass.
        affine: What followed the normalization.
        statistics: Mean and variance.
        wanted: Whether the gradient by input, weight and bias is wanted.

    Returns:
        The gradients, in the dtype of what they belong to; None where not wanted.
    """
    mean, var = statistics
    kernel = choose(x, affine.residual)
    m2 = var * max(reference.count(x), 1)
    found = Backward(None, None, None, None)  # pyright: ignore[reportArgumentType]
    if _fused(affine) and kernel.frozen is not None:
        found = kernel.frozen(grad, x, affine, mean, m2)
    else:
        if wanted[1] or wanted[2]:
            found = kernel.backward(grad, x, affine, mean, m2)
        if wanted[0]:
            found = found._replace(x=_times_scale(grad, x, affine, var, found.x))
    return (
        found.x if wanted[0] else None,
        _like(found.weight, affine.weight, wanted[1]),
        _like(found.bias, affine.bias, wanted[2]),
        found.residual,
    )


def _fused(affine: Affine) -> bool:
    return affine.act.name != "none" or affine.residual is not None


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

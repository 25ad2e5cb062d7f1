"""Batch norm by moments that were computed before: the statistics cost no second pass."""

from typing import Any

import array_api_compat.torch as xp
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from bnkit.core import Moments, real_dtype, upcast
from bnkit.ops.normalize import _gradients, batch_norm_train
from bnkit.ops.plain import has_tangents, is_plain
from bnkit.ops.registry import Affine, choose


def batch_norm_known(
    x: Float[Tensor, "n c *spatial"],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    batch: Moments,
) -> Tensor:
    """As `batch_norm_train`, given what `batch_moments(x)` returned.

    Args:
        x: Batch; 16-bit input is computed in float32.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        batch: Moments of `x` itself; the gradient takes them as the functions of `x` that they
            are.

    Returns:
        `y`, with the dtype and memory format of `x`.
    """
    dtype = real_dtype(xp, upcast(xp, x[:0]))
    tensors = (x, weight, bias, batch.mean.to(dtype), batch.m2.to(dtype))
    if has_tangents() or not is_plain(tensors):
        return batch_norm_train(x, weight, bias, eps)[0]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Known.apply(*tensors, batch.count, eps)  # pyright: ignore
    return _forward(x, Affine(weight, bias, eps), Moments(batch.count, *tensors[3:]))


def _forward(x: Tensor, affine: Affine, batch: Moments) -> Tensor:
    return choose(x).evaluate(x, batch.mean, batch.m2 / batch.count, affine)


class _Known(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias, mean, m2, count, eps = inputs
        ctx.save_for_backward(x, weight, bias, mean, m2)
        ctx.eps = eps
        return _forward(x, Affine(weight, bias, eps), Moments(count, mean, m2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, weight, bias, mean, m2 = ctx.saved_tensors
        found = _gradients(grads[0], x, Affine(weight, bias, ctx.eps), (mean, m2))
        return (*found[:3], None, None, None, None)

"""Batch norm by moments that were computed before: the statistics cost no second pass."""

from typing import Any

import array_api_compat.torch as xp
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from bnkit.core import Moments, real_dtype, upcast
from bnkit.ops.normalize import batch_norm_train, gradients
from bnkit.ops.plain import has_tangents, is_plain
from bnkit.ops.registry import Affine, choose

Correction = tuple[Tensor, Tensor]


def batch_norm_known(
    x: Float[Tensor, "n c *spatial"],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    batch: Moments,
    *,
    correction: Correction | None = None,
) -> Tensor:
    """As `batch_norm_train`, given what `batch_moments(x)` returned.

    Args:
        x: Batch; 16-bit input is computed in float32.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        batch: Moments of `x` itself; the gradient takes them as the functions of `x` that they
            are.
        correction: `r` and `d` of `(xhat * r + d) * weight + bias`, constants for autograd.

    Returns:
        `y`, with the dtype and memory format of `x`.
    """
    dtype = real_dtype(xp, upcast(xp, x[:0]))
    statistics = batch.mean.to(dtype), batch.m2.to(dtype)
    if has_tangents() or not is_plain((x, weight, bias, *statistics)):
        return batch_norm_train(x, *_corrected(weight, bias, correction), eps)[0]
    rest = eps, Moments(batch.count, *statistics), correction
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        return _Known.apply(x, weight, bias, rest)  # pyright: ignore
    return _forward(x, weight, bias, rest)


def _corrected(
    weight: Tensor | None, bias: Tensor | None, correction: Correction | None
) -> tuple[Tensor | None, Tensor | None]:
    """`(xhat * r + d) * weight + bias` as a weight and a bias of `xhat`."""
    if correction is None:
        return weight, bias
    r, d = correction
    shift = d if weight is None else weight * d
    return r if weight is None else weight * r, shift if bias is None else shift + bias


def _forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, rest: tuple) -> Tensor:
    eps, batch, correction = rest
    affine = Affine(*_corrected(weight, bias, correction), eps)
    return choose(x).evaluate(x, batch.mean, batch.m2 / batch.count, affine)


class _Known(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs[:3])
        ctx.rest = inputs[3]
        return _forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, weight, bias = ctx.saved_tensors
        eps, batch, correction = ctx.rest
        affine = Affine(*_corrected(weight, bias, correction), eps)
        by_x, by_weight, by_bias, _ = gradients(grads[0], x, affine, batch[1:])
        if correction is not None and weight is not None:
            r, d = correction
            by_weight = (by_weight * r + by_bias * d).to(weight.dtype)  # pyright: ignore
        by_bias = None if bias is None else by_bias.to(bias.dtype)  # pyright: ignore
        return by_x, None if weight is None else by_weight, by_bias, None

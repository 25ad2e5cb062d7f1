"""The training and inference forms on torch tensors, channels at dimension 1.

Training is one `autograd.Function` around the closed forms of the core, so that it keeps only
`x` alive for the backward pass. Where a graph of the backward pass itself is asked for, the
statistics are recomputed by differentiable operations, which makes every order of derivative,
forward mode and `torch.func` right.
"""

from typing import Any, overload

import array_api_compat.torch as xp
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from bnkit.core import (
    Moments,
    Normalized,
    invstd,
    moments,
    normalize,
    normalize_backward,
    normalize_jvp,
    real_dtype,
    upcast,
)


def batch_norm_train(
    x: Float[Tensor, "n c *spatial"],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
) -> tuple[Tensor, Moments]:
    """Normalize by the statistics of the batch; differentiable in every mode.

    Args:
        x: Batch; 16-bit input is computed in float32.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.

    Returns:
        `y`, with the dtype and memory format of `x`, and the moments of the batch, which are
        constants for autograd.
    """
    # Dynamo refuses a Function that defines its own forward-mode rule
    function = _Train if torch.compiler.is_compiling() else _TrainForwardMode
    y, mean, m2 = function.apply(x, weight, bias, eps)  # pyright: ignore[reportGeneralTypeIssues]
    return y, Moments(x.numel() // max(x.shape[1], 1), mean, m2)


def batch_norm_eval(
    x: Float[Tensor, "n c *spatial"],
    statistics: tuple[Float[Tensor, " c"], Float[Tensor, " c"]],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
) -> Tensor:
    """Normalize by given statistics.

    The graph keeps a copy of the scale, not the statistics, so that an in-place update between
    forward and backward (as DistributedDataParallel does) is harmless.

    Args:
        x: Batch; 16-bit input is computed in float32.
        statistics: Mean and variance.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.

    Returns:
        `y`, with the dtype and memory format of `x`.
    """
    wide = upcast(xp, x)
    mean, var = statistics
    scale = invstd(xp, _spread(var, x.ndim, real_dtype(xp, wide)), eps)
    if weight is not None:
        scale = scale * _spread(weight, x.ndim, wide.dtype)
    shift = None if bias is None else _spread(bias, x.ndim, wide.dtype)
    return normalize(wide, _spread(mean, x.ndim, wide.dtype), scale, shift).to(x.dtype)


class _Train(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = upcast(xp, x)
        batch = moments(wide, _axes(x), xp=xp)
        mean, s, w, b = _statistics(x, batch, (weight, bias), eps)
        y = normalize(wide, mean, s if w is None else s * w, b)
        return y.to(x.dtype), batch.mean, batch.m2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, bias, eps = inputs
        _, mean, m2 = output
        ctx.mark_non_differentiable(mean, m2)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, m2)
        ctx.save_for_forward(x, weight, mean, m2)
        ctx.eps = eps
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        x, weight, mean, m2 = ctx.saved_tensors
        grad_y = grads[0]
        if grad_y is None:
            return None, None, None, None
        count = _count(x)
        # with a graph of the backward pass, the statistics must be functions of x again
        batch = None if torch.is_grad_enabled() else Moments(count, mean, m2)
        at = _normalized(x, weight, batch, ctx.eps)
        g = normalize_backward(xp, at, upcast(xp, grad_y))
        by_weight = None if weight is None else g.weight.reshape(-1).to(weight.dtype)
        by_bias = None if ctx.bias_dtype is None else g.bias.reshape(-1).to(ctx.bias_dtype)
        return g.x.to(x.dtype), by_weight, by_bias, None


class _TrainForwardMode(_Train):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        x, weight, mean, m2 = ctx.saved_tensors
        at = _normalized(x, weight, Moments(_count(x), mean, m2), ctx.eps)
        dx, dweight, dbias = tangents[:3]
        dtype = at.xhat.dtype
        dx = torch.zeros_like(at.xhat) if dx is None else dx.to(dtype)
        dweight = _spread(dweight, x.ndim, dtype)
        dbias = _spread(dbias, x.ndim, dtype)
        return normalize_jvp(xp, at, dx, dweight, dbias).to(x.dtype), None, None


def _normalized(x: Tensor, weight: Tensor | None, batch: Moments | None, eps: float) -> Normalized:
    wide = upcast(xp, x)
    batch = moments(wide, _axes(x), xp=xp) if batch is None else batch
    mean, s, w, _ = _statistics(x, batch, (weight, None), eps)
    return Normalized(normalize(wide, mean, s), s, w, _axes(x), max(_count(x), 1))


def _statistics(
    x: Tensor, batch: Moments, weight_and_bias: tuple[Tensor | None, Tensor | None], eps: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    var = batch.m2 / max(_count(x), 1)
    weight, bias = weight_and_bias
    return (
        _spread(batch.mean, x.ndim),
        invstd(xp, _spread(var, x.ndim), eps),
        _spread(weight, x.ndim, batch.mean.dtype),
        _spread(bias, x.ndim, batch.mean.dtype),
    )


@overload
def _spread(v: Tensor, ndim: int, dtype: torch.dtype | None = None) -> Tensor: ...
@overload
def _spread(v: None, ndim: int, dtype: torch.dtype | None = None) -> None: ...
def _spread(v: Tensor | None, ndim: int, dtype: torch.dtype | None = None) -> Tensor | None:
    """A statistic as `(c, 1, .., 1)`, which broadcasts against `(n, c, *spatial)`."""
    if v is None:
        return None
    if dtype is not None and not dtype.is_complex:
        v = v.to(dtype)
    return v.reshape(-1, *(1,) * (ndim - 2))


def _axes(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _count(x: Tensor) -> int:
    return x.numel() // max(x.shape[1], 1)

"""The reference kernel: the core on torch tensors. It is the oracle, and runs everywhere."""

import array_api_compat.torch as xp
from torch import Tensor

from bnkit.core import (
    Moments,
    Normalized,
    invstd,
    moments,
    normalize,
    normalize_backward,
    real_dtype,
    upcast,
)
from bnkit.ops.registry import Affine, Backward, Kernel, Train
from bnkit.ops.update import Update


def axes(x: Tensor) -> tuple[int, ...]:
    """The reduced axes: all but dimension 1."""
    return (0, *range(2, x.ndim))


def count(x: Tensor) -> int:
    """Values per channel."""
    return x.numel() // max(x.shape[1], 1)


def spread(v: Tensor, x: Tensor, *, real: bool = False) -> Tensor:
    """A statistic as `(c, 1, .., 1)`, in the dtype that statistics of x are computed in."""
    wide = upcast(xp, x[:0]).dtype
    dtype = real_dtype(xp, x) if real and wide.is_complex else wide
    v = v if v.is_complex() or wide.is_complex else v.to(dtype)
    return v.reshape(-1, *(1,) * (x.ndim - 2))


def before_activation(at: Normalized, x: Tensor, affine: Affine) -> Tensor:
    """`weight * xhat + bias + residual`."""
    z = at.xhat if at.weight is None else at.xhat * at.weight
    z = z if affine.bias is None else z + spread(affine.bias, x)
    return z if affine.residual is None else z + affine.residual.to(z.dtype)


def normalized(x: Tensor, affine: Affine, batch: Moments) -> Normalized:
    """The forward pass as the core's derivatives need it."""
    weight = None if affine.weight is None else spread(affine.weight, x)
    n = max(count(x), 1)
    s = invstd(xp, spread(batch.m2 / n, x, real=True), affine.eps)
    xhat = normalize(upcast(xp, x), spread(batch.mean, x), s)
    return Normalized(xhat, s, weight, axes(x), n)


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and m2 of each channel."""
    batch = moments(upcast(xp, x), axes(x), xp=xp)
    return batch.mean, batch.m2


def train(
    x: Tensor, affine: Affine, _update: Update | None = None, _out: Tensor | None = None
) -> Train:
    """Normalize by the statistics of the batch, add the residual, activate."""
    mean, m2 = batch_moments(x)
    return Train(_finish(x, affine, mean, m2 / max(count(x), 1)), (mean, m2))


def evaluate(x: Tensor, mean: Tensor, var: Tensor, affine: Affine) -> Tensor:
    """Normalize by given statistics, add the residual, activate."""
    return _finish(x, affine, mean, var)


def backward(grad_y: Tensor, x: Tensor, affine: Affine, mean: Tensor, m2: Tensor) -> Backward:
    """Gradients in closed form; differentiable where mean and m2 are functions of x."""
    at = normalized(x, affine, Moments(count(x), mean, m2))
    grad = upcast(xp, grad_y)
    if affine.act.name != "none":
        grad = affine.act.backward(grad, before_activation(at, x, affine))
    g = normalize_backward(xp, at, grad)
    by_residual = None if affine.residual is None else grad.to(affine.residual.dtype)
    return Backward(g.x.to(x.dtype), g.weight.reshape(-1), g.bias.reshape(-1), by_residual)


def _finish(x: Tensor, affine: Affine, mean: Tensor, var: Tensor) -> Tensor:
    scale = invstd(xp, spread(var, x, real=True), affine.eps)
    if affine.weight is not None:
        scale = scale * spread(affine.weight, x)
    bias = None if affine.bias is None else spread(affine.bias, x)
    y = normalize(upcast(xp, x), spread(mean, x), scale, bias)
    if affine.residual is not None:
        y = y + affine.residual.to(y.dtype)
    return affine.act(y).to(x.dtype)


def _refuses(_x: Tensor, _residual: Tensor | None) -> None:
    return None


REFERENCE = Kernel("reference", _refuses, train, backward, evaluate, batch_moments)

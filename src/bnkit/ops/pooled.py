"""Batch norm of a tensor that is a part of its batch, or whose values carry weights.

The rest of the batch is elsewhere: in other processes, or in other micro-batches. A `Pool` knows
where. It turns the moments of this part into those of the whole batch, and in the backward pass
the two sums over this part into those over the whole. Nothing else of the others is needed.
"""

from collections.abc import Callable
from typing import Any, Protocol

import array_api_compat.torch as xp
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from bnkit.core import (
    InputError,
    Moments,
    Normalized,
    at_least_one_value,
    invstd,
    moments,
    normalize,
    normalize_backward,
    real_dtype,
    upcast,
)
from bnkit.ops.normalize import batch_norm_eval, batch_norm_train
from bnkit.ops.plain import has_tangents, is_plain


class Pool(Protocol):
    """Where the other parts of a batch are, for one forward pass and its backward pass.

    Attributes:
        where: Called for the name at the head of an error message.
    """

    where: Callable[[], str]

    def merge(self, local: Moments) -> Moments:
        """Moments of the whole batch; the mean of this part comes in double precision."""
        ...

    def total(self, grad_bias: Tensor, grad_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the whole batch of what this part has summed up, shaped alike."""
        ...


def batch_norm_pooled(
    x: Float[Tensor, "n c *spatial"],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    *,
    sample_weights: Tensor | None = None,
    pool: Pool | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize by the moments of the whole batch, of which `x` is a part.

    Equations 4 and 6 of the theory page with sums over the whole batch. The gradients of weight
    and bias are those of this part: adding them up over the parts is the caller's business, as
    it is for every other layer of the model.

    Args:
        x: Values; 16-bit input is computed in float32.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        sample_weights: Weights that broadcast against x, constants for autograd; they are
            counts: a value of weight 2 counts like two equal values, one of weight 0 is not in
            the statistics (but is normalized, and may be NaN).
        pool: The other parts; None = there are none.

    Returns:
        `y`, with the dtype of `x`, and the moments of the whole batch, constants for autograd.
        Without a pool, every order of derivative and every transform of torch is right; with
        one, a second derivative is refused.
    """
    if pool is None and sample_weights is None:
        return batch_norm_train(x, weight, bias, eps)
    if sample_weights is not None:
        sample_weights = sample_weights.to(real_dtype(xp, upcast(xp, x[:0])))
    tensors = (x, weight, bias, sample_weights)
    if pool is None and (has_tangents() or not is_plain(tensors)):
        y, batch = _composed(*tensors, eps)
        return y, Moments(batch.count, batch.mean.detach(), batch.m2.detach())
    y, *batch = _Pooled.apply(*tensors, eps, pool)  # pyright: ignore[reportGeneralTypeIssues]
    return y, Moments(*batch)


class _Pooled(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        x, weight, bias, sample_weights, eps, pool = inputs
        whole = _moments(x, sample_weights, eps)
        if pool is not None:
            _, mean, m2 = whole
            whole = pool.merge(_wide_mean(x, sample_weights, whole))
            whole = Moments(whole.count, whole.mean.to(mean.dtype), whole.m2.to(m2.dtype))
        count = torch.as_tensor(whole.count, device=x.device)
        var = whole.m2 / at_least_one_value(count, xp=xp).to(whole.m2.dtype)
        y = batch_norm_eval(x, (whole.mean, var), weight, bias, eps)
        ctx.mark_non_differentiable(count, whole.mean, whole.m2)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, sample_weights, count, whole.mean, whole.m2)
        ctx.options = eps, pool
        return y, count, whole.mean, whole.m2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        eps, pool = ctx.options
        saved = ctx.saved_tensors
        grad_y, x, weight, bias = grads[0], *saved[:3]
        if grad_y is None:
            return (None,) * 6
        if torch.is_grad_enabled() and pool is None:
            return (*_differentiable(grad_y, saved[:4], eps), None, None, None)
        with torch.no_grad():
            wanted = ctx.needs_input_grad[0]
            by_x, *by_affine = _gradients(
                grad_y, saved, eps, pool.total if pool and wanted else None
            )
        found = (
            by_x if wanted else None,
            None if weight is None else by_affine[0].to(weight.dtype),
            None if bias is None else by_affine[1].to(bias.dtype),
        )
        if torch.is_grad_enabled():
            found = tuple(
                None if g is None else _Once.apply(pool.where, g, grad_y, x) for g in found
            )
        return (*found, None, None, None)


class _Once(Function):
    """A gradient that cannot be differentiated again, and says so."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        ctx.where, grad, *_ = inputs
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:  # noqa: ARG004  the form torch asks for
        msg = (
            f"{ctx.where()}: expected one derivative, got a second one through statistics that "
            "are shared with other processes or micro-batches. Compute the gradient penalty on "
            "one process with the whole batch, or with the layer in eval mode."
        )
        raise InputError(msg)


def _composed(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, sample_weights: Tensor | None, eps: float
) -> tuple[Tensor, Moments]:
    """The forward pass by differentiable operations, for tracers and higher derivatives."""
    batch = moments(x, _axes(x), sample_weights, xp=xp)
    var = batch.m2 / at_least_one_value(batch.count, xp=xp)
    scale = invstd(xp, _spread(var, x), eps)
    scale = scale if weight is None else scale * _spread(weight, x)
    shift = None if bias is None else _spread(bias, x)
    return normalize(upcast(xp, x), _spread(batch.mean, x), scale, shift).to(x.dtype), batch


def _differentiable(grad_y: Tensor, inputs: tuple, eps: float) -> tuple:
    """Gradients by x, weight and bias that can be differentiated again."""
    x, weight, bias, sample_weights = inputs
    y, _ = _composed(x, weight, bias, sample_weights, eps)
    by = [t for t in inputs[:3] if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(y, by, grad_y, create_graph=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in inputs[:3])


def _gradients(
    grad_y: Tensor, saved: tuple, eps: float, total: Callable | None
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, _, sample_weights, count, mean, m2 = saved
    n = at_least_one_value(count, xp=xp)
    if sample_weights is None and x.dtype in (torch.float32, torch.float64):
        return _gradients_by_kernels(grad_y, x, weight, (n, mean, m2 / n.to(m2.dtype), eps), total)
    s = invstd(xp, _spread(m2 / n.to(m2.dtype), x), eps)
    xhat = normalize(upcast(xp, x), _spread(mean, x), s)
    at = Normalized(
        xhat,
        s,
        None if weight is None else _spread(weight, x).to(xhat.dtype),
        _axes(x),
        _spread(n, x).to(s.dtype),
        sample_weights,
    )
    g = normalize_backward(xp, at, upcast(xp, grad_y), total)
    return g.x.to(x.dtype), g.weight.reshape(-1), g.bias.reshape(-1)


def _gradients_by_kernels(
    grad_y: Tensor, x: Tensor, weight: Tensor | None, whole: tuple, total: Callable | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 6 as an affine map of xhat plus a residual, which the kernels of inference are."""
    n, mean, var, eps = whole
    xhat = batch_norm_eval(x, (mean, var), None, None, eps)
    by_bias = grad_y.sum(_axes(x))
    by_weight = (grad_y * xhat).sum(_axes(x))
    scale = invstd(xp, var, eps)
    scale = scale if weight is None else scale * weight.to(scale.dtype)
    if total is None:  # nobody wants the gradient by x
        return xhat, by_weight, by_bias
    all_bias, all_weight = total(by_bias, by_weight)
    share = scale / n.to(scale.dtype)
    rest = grad_y.to(x.dtype) * _spread(scale, x)
    by_x = batch_norm_eval(
        x, (mean, var), -share * all_weight, -share * all_bias, eps, residual=rest
    )
    return by_x, by_weight, by_bias


def _moments(x: Tensor, sample_weights: Tensor | None, eps: float) -> Moments:
    """Moments of this part; without weights from a kernel, whose output costs less than a pass."""
    if sample_weights is None and not torch.compiler.is_compiling():
        return batch_norm_train(x, None, None, eps)[1]
    return moments(x, _axes(x), sample_weights, xp=xp)


def _wide_mean(x: Tensor, sample_weights: Tensor | None, part: Moments) -> Moments:
    """The same moments with the mean in double precision."""
    # what parts differ by enters the variance, and float32 rounds a mean of 1e4 to 1e-3
    if part.mean.dtype in (torch.float64, torch.complex128):
        return part
    wide = torch.complex128 if x.is_complex() else torch.float64
    if sample_weights is not None:
        x = torch.where(sample_weights == 0, torch.zeros_like(x), x * sample_weights)
    mean = x.sum(_axes(x), dtype=wide) / at_least_one_value(part.count, xp=xp)
    return part._replace(mean=mean)


def _axes(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _spread(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape(-1, *(1,) * (x.ndim - 2))

"""Batch norm on torch tensors, channels at dimension 1: differentiable in every mode.

Training is one `autograd.Function` around the operators, so that it keeps only `x` (and the
residual) alive for the backward pass. Where a graph of the backward pass itself is asked for,
the statistics are recomputed by differentiable operations, which makes every order of
derivative, forward mode and `torch.func` right. A tracer sees the reference kernel, which the
compiler fuses with what stands around it.
"""

import inspect
from typing import Any

import array_api_compat.torch as xp
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from bnkit.core import Moments, moments, normalize_jvp, upcast
from bnkit.ops import frozen
from bnkit.ops.activation import IDENTITY, Activation
from bnkit.ops.commit import commit_statistics, in_memory
from bnkit.ops.inplace import apply_in_place, not_in_place
from bnkit.ops.kernels import reference
from bnkit.ops.kernels.reference import REFERENCE
from bnkit.ops.plain import has_tangents, is_batched, is_plain
from bnkit.ops.registry import Affine, Kernel, Train, choose
from bnkit.ops.update import Update


def batch_norm_train(
    x: Float[Tensor, "n c *spatial"],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    *,
    residual: Float[Tensor, "n c *spatial"] | None = None,
    act: Activation = IDENTITY,
) -> tuple[Tensor, Moments]:
    """`act(batch_norm(x) + residual)` with the statistics of the batch.

    Args:
        x: Batch; 16-bit input is computed in float32.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        residual: Added before the activation, or None.
        act: The activation.

    Returns:
        `y`, with the dtype and memory format of `x`, and the moments of the batch, which are
        constants for autograd.
    """
    step = batch_norm_step(x, weight, bias, eps, residual=residual, act=act)
    return step.y, Moments(reference.count(x), step.mean, step.m2)


def batch_norm_step(
    x: Float[Tensor, "n c *spatial"],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    *,
    residual: Float[Tensor, "n c *spatial"] | None = None,
    act: Activation = IDENTITY,
    update: Update | None = None,
    inplace: bool = False,
) -> Train:
    """As `batch_norm_train`; also averages the batch into running statistics.

    Args:
        x: Batch.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        residual: Added before the activation, or None.
        act: The activation.
        update: What to do with the statistics, if anything; an empty batch changes nothing.
        inplace: Write over x where `bnkit.ops.not_in_place` has no reason against it, and compute
            it again for the backward pass.

    Returns:
        `y` and the statistics of the batch.
    """
    tensors = (x, weight, bias, residual)
    if torch.compiler.is_compiling() or has_tangents() or not is_plain(tensors):
        # Dynamo refuses a Function that defines its own forward-mode rule
        function: Any = _Train if torch.compiler.is_compiling() else _TrainForwardMode
        y, mean, m2 = function.apply(*tensors, eps, act.name, act.slope)
        statistics: Any = mean, m2
    else:
        affine = Affine(weight, bias, eps, residual, act)
        kernel = choose(x, residual)
        direct = update if kernel.updates and _can_write(update, x) else None
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            if inplace and not_in_place(x, affine) is None:
                y, statistics = apply_in_place(tensors, kernel, affine, direct, gradients)
            else:
                found: list[Any] = []
                y = _apply_eager(*tensors, (kernel, affine, direct, found))
                statistics = found[0]
        else:
            y, statistics = kernel.train(x, affine, direct)
        if direct is not None:
            update = None
    if update is not None and x.numel():
        batch = Moments(reference.count(x), *statistics)
        commit_statistics(update.buffers, batch, update.ema_weight, update.nonfinite)
    return Train(y, statistics)


def _can_write(update: Update | None, x: Tensor) -> bool:
    if update is None:
        return False
    return in_memory(update, torch.float64 if x.dtype is torch.float64 else torch.float32)


def batch_norm_eval(
    x: Float[Tensor, "n c *spatial"],
    statistics: tuple[Float[Tensor, " c"], Float[Tensor, " c"]],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    *,
    residual: Float[Tensor, "n c *spatial"] | None = None,
    act: Activation = IDENTITY,
) -> Tensor:
    """`act(batch_norm(x) + residual)` with given statistics.

    The graph keeps a copy of the scale, not the statistics, so that an in-place update between
    forward and backward (as DistributedDataParallel does) is harmless.

    Args:
        x: Batch; 16-bit input is computed in float32.
        statistics: Mean and variance.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        residual: Added before the activation, or None.
        act: The activation.

    Returns:
        `y`, with the dtype and memory format of `x`.
    """
    tensors = (x, *statistics, weight, bias, residual)
    affine = Affine(weight, bias, eps, residual, act)
    if has_tangents() or not is_plain(tensors):
        return reference.evaluate(x, *statistics, affine)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        if any(t.requires_grad for t in statistics):
            return reference.evaluate(x, *statistics, affine)
        return _EvalEager.apply(*tensors, eps, act.name, act.slope)  # pyright: ignore
    return choose(x, residual).evaluate(x, *statistics, affine)


class _Train(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        act: str,
        slope: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        affine = Affine(weight, bias, eps, residual, Activation(act, slope))
        kernel = choose(x, residual) if is_plain((x, weight, bias, residual)) else REFERENCE
        y, (mean, m2) = kernel.train(x, affine, None)
        return y, mean, m2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, bias, residual, *ctx.options = inputs
        _, mean, m2 = output
        ctx.mark_non_differentiable(mean, m2)
        ctx.set_materialize_grads(False)
        # the bias is needed to know where the activation bends
        ctx.save_for_backward(x, weight, bias, residual, mean, m2)
        ctx.save_for_forward(x, weight, bias, residual, mean, m2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        x, weight, bias, residual, mean, m2 = ctx.saved_tensors
        if grads[0] is None:
            return (None,) * 7
        eps, *act = ctx.options
        affine = Affine(weight, bias, eps, residual, Activation(*act))
        return *gradients(grads[0], x, affine, (mean, m2)), None, None, None


def gradients(
    grad: Tensor,
    x: Tensor,
    affine: Affine,
    statistics: tuple[Tensor, Tensor],
    kernel: Kernel | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients by x, weight, bias and residual; by the kernel of the forward pass if given."""
    mean, m2 = statistics
    weight, bias = affine.weight, affine.bias
    if torch.is_grad_enabled():
        # with a graph of the backward pass, the statistics must be functions of x again
        kernel = REFERENCE
        _, mean, m2 = moments(upcast(xp, x), reference.axes(x), xp=xp)
    elif not is_plain((grad, x, weight, bias, affine.residual)) or is_batched(grad):
        kernel = REFERENCE
    elif kernel is None:
        kernel = choose(x, affine.residual)
    by_x, by_weight, by_bias, by_residual = kernel.backward(grad, x, affine, mean, m2)
    return (
        by_x,
        None if weight is None else by_weight.to(weight.dtype),
        None if bias is None else by_bias.to(bias.dtype),
        None if affine.residual is None else by_residual,
    )


class _TrainForwardMode(_Train):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        x, weight, bias, residual, mean, m2 = ctx.saved_tensors
        eps, *act = ctx.options
        affine = Affine(weight, bias, eps, residual, Activation(*act))
        at = reference.normalized(x, affine, Moments(reference.count(x), mean, m2))
        dx, dweight, dbias, dresidual = tangents[:4]
        dx = torch.zeros_like(at.xhat) if dx is None else dx.to(at.xhat.dtype)
        dweight, dbias = (None if t is None else reference.spread(t, x) for t in (dweight, dbias))
        dz = normalize_jvp(xp, at, dx, dweight, dbias)
        dz = dz if dresidual is None else dz + dresidual
        z = reference.before_activation(at, x, affine)
        return affine.act.backward(dz, z).to(x.dtype), None, None


class _TrainEager(Function):
    """As `_Train`, in the form of a Function that costs least to call; no transform is active.

    The statistics leave it through a list: every output of a Function costs a microsecond.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias, residual, (kernel, affine, update, found) = inputs
        y, statistics = kernel.train(x, affine, update)
        found.append(statistics)
        ctx.save_for_backward(x, weight, bias, residual)
        ctx.rest = kernel, affine.eps, affine.act, statistics
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, weight, bias, residual = ctx.saved_tensors
        kernel, eps, act, statistics = ctx.rest
        affine = Affine(weight, bias, eps, residual, act)
        return *gradients(grads[0], x, affine, statistics, kernel), None


# Function.apply without its preparations for torch.func, which is ruled out before
_apply_eager: Any = super(Function, _TrainEager).apply  # pyright: ignore[reportAttributeAccessIssue]


class _EvalEager(Function):
    """Inference with a gradient: frozen statistics."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, mean, var, weight, bias, residual, eps, act, slope = inputs
        affine = Affine(weight, bias, eps, residual, Activation(act, slope))
        # copies: the statistics may be written to before the backward pass
        ctx.save_for_backward(x, mean.clone(), var.clone(), weight, bias, residual)
        ctx.options = eps, act, slope
        return choose(x, residual).evaluate(x, mean, var, affine)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, mean, var, weight, bias, residual = ctx.saved_tensors
        eps, *act = ctx.options
        affine = Affine(weight, bias, eps, residual, Activation(*act))
        wanted = ctx.needs_input_grad
        if frozen.takes(grads[0], x, affine):
            parts = wanted[0], wanted[3], wanted[4]
            by_x, *rest = frozen.backward(grads[0], x, affine, (mean, var), parts)
            return (by_x, None, None, *rest, *(None,) * 3)
        n = max(reference.count(x), 1)
        at = reference.normalized(x, affine, Moments(n, mean, var * n))
        grad = upcast(xp, grads[0])
        if affine.act.name != "none":
            grad = affine.act.backward(grad, reference.before_activation(at, x, affine))
        by_weight = by_bias = None
        if weight is not None and wanted[3]:
            by_weight = (grad * at.xhat.conj()).sum(at.axes).to(weight.dtype)
        if bias is not None and wanted[4]:
            by_bias = grad.sum(at.axes).to(bias.dtype)
        scale = at.invstd if at.weight is None else at.invstd * at.weight.conj()
        return (
            (grad * scale).to(x.dtype) if wanted[0] else None,
            None,
            None,
            by_weight,
            by_bias,
            grad.to(x.dtype) if wanted[5] else None,
            *(None,) * 3,
        )


# Function.apply asks for the signature on every call, and computing it costs more than a small
# batch norm
for _function in (_Train, _TrainForwardMode):
    _function.forward.__signature__ = inspect.signature(_function.forward)  # pyright: ignore


torch.library.register_autograd(
    "bnkit::batch_norm_train", _Train.backward, setup_context=_Train.setup_context
)

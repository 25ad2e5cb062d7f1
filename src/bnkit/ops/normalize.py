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
from bnkit.ops.activation import IDENTITY, Activation
from bnkit.ops.kernels import reference
from bnkit.ops.registry import Affine
from bnkit.ops.schema import OPERATORS

_PLAIN = (Tensor, torch.nn.Parameter)
_transforms = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]


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
    # Dynamo refuses a Function that defines its own forward-mode rule
    function: Any = _Train if torch.compiler.is_compiling() else _TrainForwardMode
    y, mean, m2 = function.apply(x, weight, bias, residual, eps, act.name, act.slope)
    return y, Moments(reference.count(x), mean, m2)


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
    if _plain(tensors) and not _needs_graph(tensors):
        return OPERATORS.batch_norm_eval(
            x, *statistics, weight, bias, residual, eps, act.name, act.slope
        )
    return reference.evaluate(x, *statistics, Affine(weight, bias, eps, residual, act))


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
        if _plain((x, weight, bias, residual)):
            return OPERATORS.batch_norm_train(x, weight, bias, residual, eps, act, slope)
        affine = Affine(weight, bias, eps, residual, Activation(act, slope))
        y, mean, m2 = reference.train(x, affine)
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
        tensors = (grads[0], x, weight, bias, residual)
        # with a graph of the backward pass, the statistics must be functions of x again
        graph = torch.is_grad_enabled()
        if _plain(tensors) and not graph:
            by_x, by_weight, by_bias, by_residual = OPERATORS.batch_norm_backward(
                *tensors, mean, m2, *ctx.options
            )
        else:
            eps, *act = ctx.options
            affine = Affine(weight, bias, eps, residual, Activation(*act))
            batch = Moments(reference.count(x), mean, m2)
            batch = moments(upcast(xp, x), reference.axes(x), xp=xp) if graph else batch
            by_x, by_weight, by_bias, by_residual = reference.backward(
                grads[0], x, affine, batch.mean, batch.m2
            )
        return (
            by_x,
            None if weight is None else by_weight.to(weight.dtype),
            None if bias is None else by_bias.to(bias.dtype),
            None if residual is None else by_residual,
            *(None,) * 3,
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
        shift = None if bias is None else reference.spread(bias, x)
        z = reference.before_activation(at, shift, residual)
        return affine.act.backward(dz, z).to(x.dtype), None, None


# Function.apply asks for the signature on every call, and computing it costs more than a small
# batch norm
for _function in (_Train, _TrainForwardMode):
    _function.forward.__signature__ = inspect.signature(_function.forward)  # pyright: ignore


def _plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether all have numbers in memory: nothing traced, fake, or wrapped by a transform."""
    if torch.compiler.is_compiling() or _transforms() is not None:
        return False
    return all(t is None or type(t) in _PLAIN for t in tensors)


def _needs_graph(tensors: tuple[Tensor | None, ...]) -> bool:
    dual = torch.autograd.forward_ad._current_level >= 0
    return dual or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    )

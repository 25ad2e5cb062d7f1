"""Batch norm that writes its output over its input, and computes the input again for the backward.

A batch norm keeps its input for the backward pass, and what follows keeps its output: two arrays
for one. Where activation and scale can be inverted, the input follows from the output,

    x = mean + (act^-1(y) - residual - bias) * sqrt(var + eps) / weight,

so one of them need not live (In-Place Activated BatchNorm, Rota Bulo, Porzi & Kontschieder 2018,
section 3; there with |weight| + eps in place of the weight, here with the weight as it is).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bnkit.ops.activation import invertible
from bnkit.ops.registry import Affine, Kernel
from bnkit.ops.update import Update

# How much larger than |weight| the output of a channel may be per standard deviation of its input:
# so many times the rounding of the output enters the recovered input.
_LARGEST_GAIN = 256
Gradients = Callable[..., tuple[Tensor | None, ...]]


def not_in_place(x: Tensor, affine: Affine) -> str | None:
    """Why a batch norm cannot write over its input, or None.

    Args:
        x: The input; it requires a gradient or a parameter does.
        affine: What follows the normalization.

    Returns:
        The reason.
    """
    if not invertible(affine.act):
        return f"{affine.act.name} cannot be inverted"
    if x.dtype not in (torch.float32, torch.float64):
        return f"an output of {x.dtype} does not determine the input well enough"
    if x.requires_grad and x.is_leaf:
        return "x is a leaf that requires a gradient"
    if x._is_view():
        return "x is a view of another tensor"
    if affine.weight is not None and not _well_scaled(affine.weight, affine.bias):
        return "a weight is too small beside its bias to compute the input from the output"
    return None


def _well_scaled(weight: Tensor, bias: Tensor | None) -> bool:
    size = weight.detach().abs()
    total = size if bias is None else size + bias.detach().abs()
    return bool((total <= _LARGEST_GAIN * size).all() and (size > 0).all())


def apply_in_place(
    tensors: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    kernel: Kernel,
    affine: Affine,
    update: Update | None,
    gradients: Gradients,
) -> tuple[Tensor, Any]:
    """Normalize, over the input.

    Args:
        tensors: Input, weight, bias and residual.
        kernel: What computes it.
        affine: The same, and what follows.
        update: What to do with the statistics.
        gradients: `gradients(grad, x, affine, statistics, kernel)` by the four tensors.

    Returns:
        The output, in the memory of the input, and the statistics.
    """
    found: list[Any] = []
    y = _InPlace.apply(*tensors, (kernel, affine, update, gradients, found))
    return y, found[0]


class _InPlace(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias, residual, (kernel, affine, update, gradients, found) = inputs
        y, statistics = kernel.train(x, affine, update, x)
        if y is not x:
            x.copy_(y)
        found.append(statistics)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, weight, bias, residual)
        ctx.rest = kernel, affine.eps, affine.act, statistics, gradients
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        y, weight, bias, residual = ctx.saved_tensors
        kernel, eps, act, statistics, gradients = ctx.rest
        affine = Affine(weight, bias, eps, residual, act)
        if torch.is_grad_enabled():
            msg = (
                "batch norm in place: a graph of the backward pass was asked for (create_graph), "
                "but the input was not kept. Use inplace=False."
            )
            raise RuntimeError(msg)
        x = _recovered(y, affine, statistics, kernel)
        return *gradients(grads[0], x, affine, statistics, kernel), None


def _recovered(y: Tensor, affine: Affine, statistics: Any, kernel: Kernel) -> Tensor:
    z = y
    if affine.act.name == "leaky_relu":
        z = torch.nn.functional.leaky_relu(y, 1 / affine.act.slope)
    if affine.residual is not None:
        z = z - affine.residual
    mean, m2 = statistics
    count = y.numel() // y.shape[1]
    std = (m2 / count + affine.eps).sqrt()
    ratio = std if affine.weight is None else std / affine.weight
    shift = torch.zeros_like(mean) if affine.bias is None else affine.bias
    # (z - bias) * ratio + mean is an inference pass of variance 1
    return kernel.evaluate(z, shift, torch.ones_like(mean), Affine(ratio, mean, 0.0))

"""Batch norm of what a mask keeps: by a kernel that knows masks, or on the kept values alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bnkit.core import Moments
from bnkit.ops.again import gradients_again
from bnkit.ops.kernels import masked_cpu
from bnkit.ops.kernels.masked_cpu import Kept as Kept
from bnkit.ops.normalize import batch_norm_train
from bnkit.ops.plain import has_tangents, is_batched, is_plain
from bnkit.ops.registry import Affine, choose


def on_kept(x: Tensor, mask: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Gather what a mask keeps, run something on it, and scatter the result among zeros.

    Args:
        x: Batch `(N, C, ...)`.
        mask: Bool, shape `(n, 1, *spatial)`.
        run: From values `(kept, C)` to values of that shape.

    Returns:
        Shaped like x.
    """
    kept = mask.squeeze(1)
    y = torch.zeros_like(x)
    y.movedim(1, -1)[kept] = run(x.movedim(1, -1)[kept])
    return y


def takes_mask(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether a kernel runs `batch_norm_masked`, so that nothing is gathered."""
    if has_tangents() or not is_plain((x, weight, bias)):
        return False
    return choose(x).name == "numba"


def batch_norm_masked(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, kept: Kept
) -> tuple[Tensor, Moments]:
    """Normalize what a mask keeps by its own statistics; 0 elsewhere.

    Args:
        x: Batch `(N, C, ...)`, which `takes_mask` has accepted. What stands at masked positions
            has no influence.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        kept: Which positions count.

    Returns:
        `y`, with the dtype and memory format of x, and the moments of what is kept, which are
        constants for autograd.
    """
    found: list[Any] = []
    known = masked_cpu.plan(x, kept), kept.count
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        y = _apply_eager(x, weight, bias, eps, (kept, known, found))
    else:
        y, statistics = masked_cpu.train(x, Affine(weight, bias, eps), *known)
        found.append(statistics)
    mean, m2 = found[0]
    return y, Moments(kept.count, mean, m2)  # pyright: ignore[reportArgumentType]


class _Masked(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias, eps, (kept, known, found) = inputs
        y, statistics = masked_cpu.train(x, Affine(weight, bias, eps), *known)
        found.append(statistics)
        ctx.save_for_backward(x, weight, bias)
        ctx.rest = eps, kept, statistics, known
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, weight, bias = ctx.saved_tensors
        eps, kept, statistics, known = ctx.rest
        grad = grads[0]
        if torch.is_grad_enabled() or not is_plain((grad,)) or is_batched(grad):

            def packed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
                run = lambda values: batch_norm_train(values, weight, bias, eps)[0]  # noqa: E731
                return on_kept(x, kept.mask, run)

            return *gradients_again(grad, (x, weight, bias), packed), None, None
        by_x, by_weight, by_bias = masked_cpu.backward(
            grad, x, Affine(weight, bias, eps), statistics, known
        )
        return (
            by_x,
            None if weight is None else by_weight.to(weight.dtype),
            None if bias is None else by_bias.to(bias.dtype),
            None,
            None,
        )


# Function.apply without its preparations for torch.func, which is ruled out before
_apply_eager: Any = super(Function, _Masked).apply  # pyright: ignore[reportAttributeAccessIssue]

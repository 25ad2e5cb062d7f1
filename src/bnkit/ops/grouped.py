"""Batch norm of groups that lie one behind the other, as one node of the graph."""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.autograd import Function

from bnkit.core import moments, normalize, upcast
from bnkit.ops.again import gradients_again
from bnkit.ops.kernels import groups_cpu
from bnkit.ops.plain import has_tangents, is_batched, is_plain
from bnkit.ops.registry import Affine, choose


def takes(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether `grouped_train` can run a batch: values in memory, for the loops of the CPU."""
    if has_tangents() or not is_plain((x, weight, bias)):
        return False
    return groups_cpu.takes(x) and choose(x).name == "numba"


def grouped_train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    groups: "Groups",
) -> tuple[Tensor, Tensor]:
    """Normalize each group by its own statistics.

    Args:
        x: Batch `(N, C, ...)`, which `takes` has accepted.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        groups: Which samples are a group.

    Returns:
        `y`, and mean and m2 of the groups, shape `(groups, 2, c)`, constants for autograd.
    """
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        return _Grouped.apply(x, weight, bias, eps, groups)  # pyright: ignore
    return _forward(x, Affine(weight, bias, eps), groups)


class Groups(NamedTuple):
    """Groups of samples that lie one behind the other, once they are put in order.

    Attributes:
        bounds: Where the groups begin, and N.
        order: The samples in the order of the groups; None = as they are.
    """

    bounds: tuple[int, ...]
    order: Tensor | None = None

    def gathered(self, x: Tensor) -> Tensor:
        """The samples, group by group."""
        return x if self.order is None else _selected(x, self.order)

    def scattered(self, y: Tensor) -> Tensor:
        """The inverse of `gathered`."""
        return y if self.order is None else _selected(y, self.order.argsort())


def _selected(x: Tensor, order: Tensor) -> Tensor:
    """Samples in another order, in the memory format that they have."""
    if x.is_contiguous():
        return x.index_select(0, order)
    return x.movedim(1, -1).index_select(0, order).movedim(-1, 1)


def _forward(x: Tensor, affine: Affine, groups: Groups) -> tuple[Tensor, Tensor]:
    y, found = groups_cpu.train(groups.gathered(x), affine, groups.bounds)
    return groups.scattered(y), found


class _Grouped(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, weight, bias, eps, groups = inputs
        y, found = _forward(x, Affine(weight, bias, eps), groups)
        ctx.mark_non_differentiable(found)
        ctx.save_for_backward(x, weight, bias, found)
        ctx.options = eps, groups
        return y, found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, weight, bias, found = ctx.saved_tensors
        eps, groups = ctx.options
        grad = grads[0]
        if torch.is_grad_enabled() or not is_plain((grad,)) or is_batched(grad):
            run = partial(_by_parts, eps, groups)
            return *gradients_again(grad, (x, weight, bias), run), None, None
        by_x, by_weight, by_bias = groups_cpu.backward(
            groups.gathered(grad),
            groups.gathered(x),
            Affine(weight, bias, eps),
            found,
            groups.bounds,
        )
        return (
            groups.scattered(by_x),
            None if weight is None else by_weight.to(weight.dtype),
            None if bias is None else by_bias.to(bias.dtype),
            None,
            None,
        )


def _by_parts(
    eps: float, groups: Groups, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The same by differentiable operations."""
    parts = groups.gathered(x).split([b - a for a, b in pairwise(groups.bounds)])
    return groups.scattered(torch.cat([_composed(part, weight, bias, eps) for part in parts]))


def _composed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    shape = (-1, *(1,) * (x.ndim - 2))
    wide = upcast(xp, x)
    batch = moments(wide, (0, *range(2, x.ndim)), xp=xp)
    scale = 1 / torch.sqrt(batch.var() + eps)
    scale = (scale if weight is None else scale * weight).reshape(shape)
    shift = None if bias is None else bias.reshape(shape)
    return normalize(wide, batch.mean.reshape(shape), scale, shift).to(x.dtype)

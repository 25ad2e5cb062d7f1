"""Batch norm of groups of samples: ghost batches, and their moments alone."""

from collections.abc import Callable
from itertools import accumulate, chain
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from bnkit.core import Moments, corrected, moments, upcast
from bnkit.ops import grouped
from bnkit.ops.kernels import reference
from bnkit.ops.known import Correction, batch_norm_known
from bnkit.ops.normalize import batch_norm_train
from bnkit.ops.plain import is_plain
from bnkit.ops.registry import choose

# Below this many values per group the calls cost more than copying the batch into one.
_SMALL = 1 << 15
Slices = tuple[slice, ...]


def batch_moments(x: Tensor) -> Moments:
    """Moments of a batch per channel (dimension 1), in at least float32; constants for autograd.

    Args:
        x: Batch `(N, C, ...)`.

    Returns:
        Count, mean and m2, shape `(c,)`.
    """
    x = x.detach()
    if not is_plain((x,)):
        return moments(upcast(xp, x), reference.axes(x), xp=xp)
    mean, m2 = choose(x).moments(x)
    return Moments(reference.count(x), mean, m2)


def ghost_moments(x: Tensor, slices: Slices) -> list[Moments]:
    """Moments of each group of samples; constants for autograd.

    Args:
        x: Batch `(N, C, ...)`.
        slices: The samples of each group, from `bnkit.core.ghost_slices`.

    Returns:
        One per group.
    """
    return _by_group(x, slices, lambda part, _: (part, batch_moments(part)))[1]


def ghost_batch_norm_train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    slices: Slices,
    correction: float = 0,
) -> tuple[Tensor, list[Moments]]:
    """Normalize each group of samples by its own statistics; one group is plain batch norm.

    Args:
        x: Batch `(N, C, ...)`.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        slices: The samples of each group, from `bnkit.core.ghost_slices`.
        correction: Subtracted from the count in the variance that normalizes.

    Returns:
        `y`, with the dtype and memory format of `x`, and the moments of the groups, which are
        constants for autograd.
    """
    if (
        len(slices) > 1
        and not correction
        and not _folds(x, slices)
        and grouped.takes(x, weight, bias)
    ):
        return _in_place(x, weight, bias, eps, slices)

    def run(part: Tensor, copies: int) -> tuple[Tensor, Moments]:
        count = part.numel() // max(part.shape[1], 1)
        w, b = (v if v is None or copies == 1 else v.repeat(copies) for v in (weight, bias))
        scale, its_eps = corrected(count, correction, eps)
        if correction:
            w = upcast(xp, part[:0]).new_full((part.shape[1],), scale) if w is None else w * scale
        return batch_norm_train(part, w, b, its_eps)

    return _by_group(x, slices, run)


def _folds(x: Tensor, slices: Slices) -> bool:
    """Whether the groups are channels of one batch without moving anything in memory."""
    return slices[0].step > 1 and x.shape[0] % len(slices) == 0 and x.is_contiguous()


def _in_place(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slices: Slices
) -> tuple[Tensor, list[Moments]]:
    """By loops that run where each group lies; strided groups are brought together first."""
    n = x.shape[0]
    sizes = [len(range(*s.indices(n))) for s in slices]
    bounds = tuple(accumulate(sizes, initial=0))
    order = None
    if slices[0].step > 1:
        order = torch.tensor(list(chain.from_iterable(range(*s.indices(n)) for s in slices)))
    y, found = grouped.grouped_train(x, weight, bias, eps, grouped.Groups(bounds, order))
    values = x[0].numel() // x.shape[1]
    pairs = zip(sizes, found.unbind(), strict=True)
    return y, [Moments(k * values, mean, m2) for k, (mean, m2) in pairs]


def ghost_normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    slices: Slices,
    groups: list[Moments],
    correction: Correction | None = None,
) -> Tensor:
    """As `ghost_batch_norm_train`, given what `ghost_moments(x, slices)` returned.

    Args:
        x: Batch `(N, C, ...)`.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        eps: Added to the variance.
        slices: The samples of each group, from `bnkit.core.ghost_slices`.
        groups: Their moments.
        correction: `r` and `d` of `(xhat * r + d) * weight + bias`, constants for autograd.

    Returns:
        `y`, with the dtype and memory format of `x`.
    """
    known = iter(groups)

    def run(part: Tensor, copies: int) -> tuple[Tensor, Moments]:
        batch = next(known)
        w, b, *rd = (
            v if v is None or copies == 1 else v.repeat(copies)
            for v in (weight, bias, *(correction or ()))
        )
        if copies > 1:
            mean, m2 = (torch.cat([getattr(g, name) for g in groups]) for name in ("mean", "m2"))
            batch = Moments(batch.count, mean, m2)
        both: Any = tuple(rd) or None
        return batch_norm_known(part, w, b, eps, batch, correction=both), batch

    return _by_group(x, slices, run)[0]


def _by_group(
    x: Tensor, slices: Slices, run: Callable[[Tensor, int], tuple[Tensor, Moments]]
) -> tuple[Tensor, list[Moments]]:
    """Run something over the groups; equal groups can become channels of one batch."""
    groups, n, c = len(slices), x.shape[0], x.shape[1]
    if groups == 1:
        y, batch = run(x, 1)
        return y, [batch]
    strided = slices[0].step > 1
    small = x.numel() < _SMALL * groups
    if n % groups == 0 and n // groups == len(range(*slices[0].indices(n))) and (strided or small):
        size = n // groups
        folded = x if strided else x.unflatten(0, (groups, size)).transpose(0, 1)
        y, batch = run(folded.reshape(size, groups * c, *x.shape[2:]), groups)
        y = y.reshape(size, groups, *x.shape[1:])
        y = (y if strided else y.transpose(0, 1)).reshape(x.shape)
        pairs = zip(batch.mean.view(groups, c), batch.m2.view(groups, c), strict=True)
        return _laid_out_as(x, y), [Moments(batch.count, mean, m2) for mean, m2 in pairs]
    done = [run(part, 1) for part in _parts(x, slices)]
    y = torch.cat([y for y, _ in done])
    if strided:
        order = list(chain.from_iterable(range(*s.indices(n)) for s in slices))
        back = torch.empty(n, dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(n)
        y = y[back.to(y.device)]
    return _laid_out_as(x, y), [batch for _, batch in done]


def _parts(x: Tensor, slices: Slices) -> tuple[Tensor, ...]:
    if slices[0].step > 1:
        return tuple(x[s] for s in slices)
    # the derivative of a split is one concatenation; that of many slices is as many full tensors
    return x.split(slices[0].stop - slices[0].start)


def _laid_out_as(x: Tensor, y: Tensor) -> Tensor:
    if x.is_contiguous() or x.ndim not in (4, 5):
        return y
    wanted = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return y.contiguous(memory_format=wanted) if x.is_contiguous(memory_format=wanted) else y

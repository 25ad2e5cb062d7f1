"""One training step of the family: groups of samples, renormalization, a corrected variance."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from bnkit import ops
from bnkit.core import (
    GhostOrder,
    GhostRemainder,
    GhostRunning,
    InputError,
    Moments,
    RenormLimits,
    RenormRule,
    RenormSchedule,
    check_ghost,
    check_renorm_rule,
    ghost_slices,
    ghost_statistics,
    merge,
)
from bnkit.nn.checks import check_finite
from bnkit.nn.statistics.first_pass import of_first_pass
from bnkit.ops import NonFinitePolicy, RenormBuffers, StatisticsBuffers
from bnkit.ops.plain import is_plain

Where = Callable[[], str]
Commit = Callable[[list[Moments]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ghost:
    """How a batch is divided into ghost batches, and what of them is averaged."""

    virtual_batch_size: int
    groups: GhostOrder = "contiguous"
    running: GhostRunning = "mean"
    remainder: GhostRemainder = "error"

    def check(self, where: str) -> None:
        """Raise `SpecError` for a size or a choice that is none."""
        check_ghost(
            where,
            self.virtual_batch_size,
            groups=self.groups,
            running=self.running,
            remainder=self.remainder,
        )

    def slices(self, where: Where, x: Tensor) -> tuple[slice, ...]:
        """The samples of each group; raises `InputError` for a group of one value per channel."""
        found = ghost_slices(
            x.shape[0],
            self.virtual_batch_size,
            groups=self.groups,
            remainder=self.remainder,
            where=where() if x.shape[0] % self.virtual_batch_size else "",
        )
        last = len(range(*found[-1].indices(x.shape[0])))
        if last == 1 and x[0].numel() == x.shape[1]:
            msg = (
                f"{where()}: expected more than 1 value per channel in every ghost batch, got "
                f"{x.shape[0]} samples of 1 value in groups of {self.virtual_batch_size}. Choose "
                "a larger virtual_batch_size, or remainder='plain' where only the last group is "
                "that small."
            )
            raise InputError(msg)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Renorm:
    """How far a batch may be corrected towards the reference, and how that is averaged.

    Attributes:
        limits: Bounds of r and d.
        ema_weight: Weight of the new batch in the reference; None = as in the running statistics.
        rule: What the reference is.
    """

    limits: RenormLimits | RenormSchedule
    ema_weight: float | None
    rule: RenormRule = "plain"

    def check(self, where: str) -> None:
        """Raise `SpecError` for a rule that is none."""
        check_renorm_rule(where, self.rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that a training step needs to know beside its tensors.

    Attributes:
        eps: Added to the variance.
        ema_weight: Weight of the new batch in the running statistics; None = cumulative.
        ghost: Division into ghost batches, or None.
        renorm: Batch renormalization, or None.
        correction: Subtracted from the count in the variance that normalizes.
        running_correction: The same in the variance that is stored; renormalization has none.
        on_nonfinite: What a batch with NaN or infinity does to the statistics.
        updates: Whether batches are averaged at all.
    """

    eps: float
    ema_weight: float | None
    ghost: Ghost | None = None
    renorm: Renorm | None = None
    correction: float = 0
    running_correction: float = 1
    on_nonfinite: NonFinitePolicy = "skip"
    updates: bool = True


def train_step(
    where: Where,
    layer: Any,
    x: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    *,
    buffers: StatisticsBuffers | RenormBuffers | None,
    recipe: Recipe,
) -> Tensor:
    """Normalize a batch as the recipe says, and average it into the buffers.

    Args:
        where: Called for the name at the head of an error message.
        layer: Whose batch it is; its `_part`, if it has one, commits later.
        x: Batch `(N, C, ...)`, checked.
        affine: Weight and bias, each or None.
        buffers: Changed in place; None = not kept.
        recipe: What to do.

    Returns:
        The output, with the dtype and memory format of `x`.
    """
    whole = (slice(0, x.shape[0], 1),)
    slices = whole if recipe.ghost is None else recipe.ghost.slices(where, x)
    if recipe.renorm is None:
        y, groups = _normalize(x, affine, slices, recipe)
    else:
        y, groups = _renormalize(layer, x, affine, slices, rest=(buffers, recipe))
    if buffers is not None and recipe.updates:
        _commit_by(layer, buffers, recipe, groups)
    _stop_if_asked(where, recipe, groups)
    return y


def _commit_by(layer: Any, buffers: Any, recipe: Recipe, groups: list[Moments]) -> None:
    finish: Commit = partial(_commit, buffers, recipe)
    if layer._part is None:
        finish(groups)
    else:
        layer._part.collect(layer, buffers, groups, finish)


def _renormalize(
    layer: Any,
    x: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    slices: tuple[slice, ...],
    *,
    rest: tuple[Any, Recipe],
) -> tuple[Tensor, list[Moments]]:
    buffers, recipe = rest
    groups = ops.ghost_moments(x, slices)
    batch = _pooled(groups)

    def compare() -> tuple[Tensor, Tensor]:
        limits = recipe.renorm.limits.at(_count(buffers.num_batches_tracked))  # pyright: ignore
        return ops.renorm_scale_shift(buffers, batch, limits, recipe.eps)

    correction = of_first_pass(layer, batch, compare)
    y = ops.ghost_normalize(
        x, *affine, recipe.eps, slices=slices, groups=groups, correction=correction
    )
    return y, groups


def _normalize(
    x: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    slices: tuple[slice, ...],
    recipe: Recipe,
) -> tuple[Tensor, list[Moments]]:
    return ops.ghost_batch_norm_train(
        x, *affine, recipe.eps, slices=slices, correction=recipe.correction
    )


def _commit(buffers: Any, recipe: Recipe, groups: list[Moments]) -> None:
    """Average the groups of one batch, or of all batches of a step, into the buffers."""
    nonfinite = recipe.on_nonfinite
    if recipe.renorm is not None:
        reference = recipe.renorm.ema_weight
        weights = recipe.ema_weight, recipe.ema_weight if reference is None else reference
        batch = reduce(partial(merge, xp=xp), groups) if recipe.ghost is None else _pooled(groups)
        ops.commit_renorm(buffers, batch, weights, eps=recipe.eps, nonfinite=nonfinite)
        return
    running = "total" if recipe.ghost is None else recipe.ghost.running
    if recipe.running_correction == 1 and running == "total":
        ops.commit_statistics(
            buffers, reduce(partial(merge, xp=xp), groups), recipe.ema_weight, nonfinite
        )
        return
    if running == "mean" and len({g.count for g in groups}) == 1 and len(groups) > 2:
        groups = [_mean(groups)]
    for mean, var in ghost_statistics(groups, running, recipe.running_correction, xp=xp):
        # what is stored is m2 / (count - 1): with a count of 2, the variance itself
        ops.commit_statistics(buffers, Moments(2, mean, var), recipe.ema_weight, nonfinite)


def _mean(groups: list[Moments]) -> Moments:
    """What `"mean"` makes of groups of one size, in fewer steps."""
    mean, m2 = (torch.stack([getattr(g, name) for g in groups]).mean(0) for name in ("mean", "m2"))
    return Moments(groups[0].count, mean, m2)


def _pooled(groups: list[Moments]) -> Moments:
    if len(groups) == 1:
        return groups[0]
    mean, var = ghost_statistics(groups, "mean")[0]
    return Moments(1, mean, var)


def _count(counter: Tensor | None) -> Any:
    """The number of batches: a number where reading it is free."""
    if counter is None:
        return 0
    return int(counter) if counter.device.type == "cpu" and is_plain((counter,)) else counter


def _stop_if_asked(where: Where, recipe: Recipe, groups: list[Moments]) -> None:
    if recipe.on_nonfinite == "raise" and not torch.compiler.is_compiling():
        for batch in groups:
            check_finite(where, batch.mean, batch.m2)

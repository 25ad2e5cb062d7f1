"""Turning the batch norms of a model into ghost batch norms or batch renormalizations, in place."""

from collections.abc import Callable
from typing import Any

from torch import nn

from bnkit.core import (
    GhostOrder,
    GhostRemainder,
    GhostRunning,
    RenormLimits,
    RenormRule,
    RenormSchedule,
)
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.layers.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from bnkit.nn.layers.recipe import Ghost, Renorm
from bnkit.nn.layers.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from bnkit.nn.layers.renorm_buffers import start_from_running
from bnkit.nn.layers.renorm_limits import renorm_limits
from bnkit.nn.naming import check_model
from bnkit.nn.replacing.replace import Replacement, replace_
from bnkit.nn.statistics.statistics_policy import WithPolicy

_GHOST: dict[type, Any] = {
    BatchNorm1d: GhostBatchNorm1d,
    BatchNorm2d: GhostBatchNorm2d,
    BatchNorm3d: GhostBatchNorm3d,
}
_RENORM: dict[type, Any] = {
    BatchNorm1d: BatchRenorm1d,
    BatchNorm2d: BatchRenorm2d,
    BatchNorm3d: BatchRenorm3d,
}


def ghost_(
    model: nn.Module,
    virtual_batch_size: int,
    *,
    groups: GhostOrder = "contiguous",
    running: GhostRunning = "mean",
    remainder: GhostRemainder = "error",
) -> Replacement:
    """Turn the batch norms of a model, torch's and bnkit's, into ghost batch norms, in place.

    Each layer stays the same object with its parameters, statistics and hooks. `plain_` is the
    way back.

    Args:
        model: Any module, also a batch norm itself.
        virtual_batch_size: Samples in a group.
        groups: As in `GhostBatchNorm2d`.
        running: As in `GhostBatchNorm2d`.
        remainder: As in `GhostBatchNorm2d`.

    Returns:
        The names of the layers that changed, and of the batch norms kept, with the reason.

    Raises:
        SpecError: A size or a choice that is none; nothing has been changed then.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> bnkit.nn.ghost_(model, 16).replaced, type(model[1]).__name__
        (('1',), 'GhostBatchNorm2d')
    """
    ghost = Ghost(
        virtual_batch_size=virtual_batch_size, groups=groups, running=running, remainder=remainder
    )
    ghost.check("ghost_")
    check_model("ghost_", model)
    return _switch(model, _GHOST, lambda layer: layer._divide(ghost))


def renorm_(
    model: nn.Module,
    *,
    limits: RenormLimits | RenormSchedule | None = None,
    renorm_momentum: float | None = None,
    rule: RenormRule = "plain",
) -> Replacement:
    """Turn the batch norms of a model, torch's and bnkit's, into batch renormalizations, in place.

    The reference starts at the running statistics, so that a trained model goes on where it is;
    limits that follow a schedule count on from `num_batches_tracked`. Each layer stays the same
    object with its parameters, `momentum` and hooks. `plain_` is the way back.

    Args:
        model: Any module, also a batch norm itself.
        limits: As in `BatchRenorm2d`; None = the paper's schedule.
        renorm_momentum: As in `BatchRenorm2d`.
        rule: As in `BatchRenorm2d`.

    Returns:
        The names of the layers that changed, and of the batch norms kept, with the reason.

    Raises:
        SpecError: Limits or a rule that are none; nothing has been changed then.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> bnkit.nn.renorm_(model).replaced, type(model[1]).__name__
        (('1',), 'BatchRenorm2d')
    """
    check_model("renorm_", model)
    limits = RenormSchedule() if limits is None else renorm_limits("renorm_", limits)
    Renorm(limits=limits, ema_weight=None, rule=rule).check("renorm_")

    def set_up(layer: Any) -> None:
        layer._renormalize(limits, renorm_momentum, rule)
        start_from_running(layer)

    return _switch(model, _RENORM, set_up, needs_statistics=True)


def _switch(
    model: nn.Module,
    classes: dict[type, Any],
    set_up: Callable[[Any], None],
    *,
    needs_statistics: bool = False,
) -> Replacement:
    kept = dict(replace_(model, strict=False).kept)
    switched = []
    found: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, WithPolicy)}
    for name, layer in found.items():
        cls = type(layer)
        if layer._part is not None:
            kept[name] = f"it is {layer._part}; call revert_sync_batchnorm, or leave the context"
        elif cls not in classes:
            kept[name] = f"{cls.__name__} is not a plain batch norm"
        elif needs_statistics and layer.running_mean is None:
            kept[name] = "it keeps no running statistics"
        else:
            layer.__class__ = classes[cls]
            set_up(layer)
            switched.append(name)
    return Replacement(tuple(switched), kept)

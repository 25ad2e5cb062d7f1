"""Frozen layers: inference with the running statistics in the middle of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from bnkit.core import PolicyError
from bnkit.nn.statistics.statistics_policy import Thaw, assign, own_batch_norms

_WHY = "would thaw at the next .train()"
_PARAMETERS = ("weight", "bias")


def freeze_(model: nn.Module, *, affine: bool = False) -> tuple[str, ...]:
    """Freeze every batch norm of a model, in place, until `unfreeze_`.

    A frozen layer normalizes with its running statistics and changes nothing, as in eval mode,
    and stays so when the model is set to `.train()`. It keeps its class, its parameters and its
    state_dict, so that checkpoints, EMA copies, `DistributedDataParallel` and pickling see an
    ordinary layer; copies are frozen too. `reset_running_stats()` leaves it alone, with a
    warning, so that `torch.optim.swa_utils.update_bn` spares it.

    Args:
        model: Any module; pass `model.backbone` to freeze a part.
        affine: Also stop the training of weight and bias (`requires_grad`). Do so before
            wrapping the model in `DistributedDataParallel`, which counts on gradients for what
            required them when it was built.

    Returns:
        The names of the frozen layers.

    Raises:
        PolicyError: A layer is torch's own, or keeps no running statistics; nothing was changed.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), bnkit.nn.BatchNorm2d(4))
        >>> bnkit.nn.freeze_(model)
        ('1',)
        >>> model.train()[1].training
        False
        >>> bnkit.nn.unfreeze_(model), model[1].training
        (('1',), True)
    """
    layers = _freezable(model, "freeze_")
    for layer in layers.values():
        _freeze(layer, affine=affine)
    return tuple(layers)


def unfreeze_(model: nn.Module) -> tuple[str, ...]:
    """Undo `freeze_`: the mode last asked for, the policy and `requires_grad` come back.

    Args:
        model: Any module.

    Returns:
        The names of the layers that were frozen.

    Raises:
        PolicyError: Not a module, or a layer is torch's own.
    """
    layers = own_batch_norms(model, "unfreeze_", "cannot be frozen")
    frozen = {name: layer for name, layer in layers.items() if layer._thaw is not None}
    for layer in frozen.values():
        _restore(layer, None)
    return tuple(frozen)


@contextmanager
def frozen(model: nn.Module, *, affine: bool = False) -> Iterator[None]:
    """Freeze every batch norm of a model within a `with`, as `freeze_` does.

    Args:
        model: Any module.
        affine: Also stop the training of weight and bias.

    Yields:
        Nothing; afterwards every layer is as it was, in the mode it was last asked for.

    Raises:
        PolicyError: As `freeze_`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchNorm1d(2)
        >>> with bnkit.nn.frozen(layer):
        ...     y = layer.train()(torch.tensor([[1.0, 2.0]]))
        >>> int(layer.num_batches_tracked), layer.training
        (0, True)
    """
    layers = _freezable(model, "frozen").values()
    before = [(layer, layer._thaw) for layer in layers]
    try:
        for layer, _ in before:
            _freeze(layer, affine=affine)
        yield
    finally:
        for layer, thaw in before:
            _restore(layer, thaw)


def _freezable(model: nn.Module, verb: str) -> dict[str, Any]:
    layers = own_batch_norms(model, verb, _WHY)
    without = [
        f"{name!r} ({type(layer).__name__})"
        for name, layer in layers.items()
        if not layer.track_running_stats or layer.running_mean is None
    ]
    if without:
        msg = (
            f"{verb}: expected layers with running statistics, got {', '.join(without)} with "
            "track_running_stats=False, which have none to normalize with. Nothing was changed. "
            "Pass the part of the model without them."
        )
        raise PolicyError(msg)
    return layers


def _freeze(layer: Any, *, affine: bool) -> None:
    thaw = Thaw(layer.training) if layer._thaw is None else layer._thaw
    if affine:
        kept = dict(thaw.parameters)
        for name in _PARAMETERS:
            parameter = getattr(layer, name)
            if parameter is not None:
                kept.setdefault(name, parameter.requires_grad)
                parameter.requires_grad_(requires_grad=False)
        thaw = Thaw(thaw.training, tuple(kept.items()))
    layer.__dict__["_thaw"] = thaw
    layer.training = False
    assign(layer, replace(layer.statistics_policy, normalize="running"))


def _restore(layer: Any, thaw: Thaw | None) -> None:
    """Back to a state that was frozen earlier, or to no frozen state."""
    now = layer._thaw
    if now is None:
        return
    earlier = () if thaw is None else thaw.parameters
    for name, requires_grad in now.parameters:
        parameter = getattr(layer, name)
        if name not in dict(earlier) and parameter is not None:
            parameter.requires_grad_(requires_grad)
    if thaw is not None:
        layer.__dict__["_thaw"] = Thaw(now.training, thaw.parameters)
        return
    layer.__dict__.pop("_thaw")
    layer.training = now.training
    assign(layer, replace(layer.statistics_policy, normalize="batch"))

"""Synchronizing the batch norms of a model over processes, in place, and back."""

from typing import Any

from torch import nn

from bnkit.core import ConversionError
from bnkit.nn.accumulating.accumulation import refused
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.lazy import check_initialized
from bnkit.nn.naming import check_model
from bnkit.nn.parts.processes import Processes
from bnkit.nn.replacing.replace import replace_, restore_
from bnkit.nn.statistics.statistics_policy import DEFAULT, WithPolicy


def convert_sync_batchnorm(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Make every batch norm of a model normalize over all processes, in place.

    Each layer stays the same object of the same class (torch's become bnkit's, by `replace_`),
    with its parameters, buffers, hooks, activation and dimension check; what changes is where
    its batch ends. `torch.nn.SyncBatchNorm` becomes `SyncBatchNorm` and keeps its group.

    Args:
        model: Any module, also a batch norm itself.
        process_group: A group of `torch.distributed` that holds this process; None = all.

    Returns:
        The same model, as from torch's function of this name.

    Raises:
        ConversionError: A batch norm that cannot be converted without losing behaviour, that is
            not initialized yet, or part of something else, or whose batch cannot be a part of a
            larger one (ghost batch norm, batch renormalization, `BatchNorm`,
            `DifferentiableBatchNorm`); nothing has been changed then.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> bnkit.nn.convert_sync_batchnorm(model)[1]
        BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, synchronized=True)
        >>> type(bnkit.nn.revert_sync_batchnorm(model)[1]) is torch.nn.BatchNorm2d
        True
    """  # noqa: E501  one line of repr
    check_model("convert_sync_batchnorm", model)
    _check_free(model)
    foreign = {id(m) for m in model.modules() if not isinstance(m, BatchNormBase)}
    replace_(model)
    for layer in _batch_norms(model):
        if layer._part is None or id(layer) in foreign:
            layer._part = layer._part or Processes(process_group)
            layer.__dict__["_converted"] = id(layer) in foreign
    return model


def revert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Undo `convert_sync_batchnorm`, in place: the same layers, classes and attributes as before.

    What was learned and counted meanwhile stays. A layer that was built as `SyncBatchNorm` has
    no other class to go back to and stays synchronized.

    Args:
        model: Any module.

    Returns:
        The same model.

    Raises:
        ConversionError: A layer that was torch's and is frozen now, or has another statistics
            policy, which torch's layers cannot have; nothing has been changed then.
    """
    check_model("revert_sync_batchnorm", model)
    for name, layer in model.named_modules():
        if layer.__dict__.get("_converted") and layer.statistics_policy != DEFAULT:
            msg = (
                f"revert_sync_batchnorm: expected layers without a statistics policy of their own, "
                f"got {name!r} with {layer.statistics_policy}. Call bnkit.nn.unfreeze_ or "
                "set_policy_ first."
            )
            raise ConversionError(msg)
    for layer in _batch_norms(model):
        if "_converted" not in layer.__dict__:
            continue
        if layer.__dict__.pop("_converted"):
            restore_(layer)
        else:
            del layer.__dict__["_part"]
    return model


def _batch_norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, BatchNormBase)]


def _check_free(model: nn.Module) -> None:
    check_initialized("convert_sync_batchnorm", model)
    found: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, WithPolicy)}
    for name, layer in found.items():
        if layer.alone is not None:
            raise ConversionError(f"convert_sync_batchnorm: {refused(name, layer, layer.alone)}")
        part = layer._part
        if part is not None and not isinstance(part, Processes):
            msg = (
                f"convert_sync_batchnorm: expected layers outside of any context, got {name!r} "
                f"with {part}. Convert the model before it enters the context."
            )
            raise ConversionError(msg)

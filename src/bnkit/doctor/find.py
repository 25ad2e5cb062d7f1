"""Read the batch norms of a module, by what they hold and not by their class."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.source import built_at

_HIDDEN_DEPTH = 3


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm: it is one of torch's, or keeps a running mean and variance.

    Args:
        module: Any module.

    Returns:
        True for `torch.nn.BatchNorm*`, `SyncBatchNorm`, frozen ones of torchvision, detectron2
        and transformers, timm's and InPlaceABN; False for instance norms and for containers.

    Example:
        >>> from torch import nn
        >>> is_batch_norm(nn.BatchNorm2d(3)), is_batch_norm(nn.InstanceNorm2d(3))
        (True, False)
    """
    if isinstance(module, _InstanceNorm):
        return False
    if isinstance(module, _BatchNorm):
        return True
    names = {*module._buffers, *module._parameters}
    return {"running_mean", "running_var"} <= names


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The batch norms of a model by qualified name, each once, in order.

    Args:
        model: Any module; one that is a batch norm itself has the name "".

    Returns:
        The layers. A lazy layer that has not seen data is left out.
    """
    found = {}
    for name, module in model.named_modules():
        lazy = any(nn.parameter.is_lazy(t) for t in _tensors(module))
        if is_batch_norm(module) and not lazy:
            found[name] = module
    return found


def lazy_batch_norms(model: nn.Module) -> tuple[str, ...]:
    """Names of the lazy batch norms that have not seen data yet."""
    return tuple(
        name
        for name, module in model.named_modules()
        if is_batch_norm(module) and any(nn.parameter.is_lazy(t) for t in _tensors(module))
    )


def read_module(model: nn.Module) -> tuple[BatchNormRecord, ...]:
    """A record of each batch norm of a model; the model is only read.

    Args:
        model: Any module.

    Returns:
        Records in the order of `named_modules()`.
    """
    return tuple(_read(model, name, layer) for name, layer in batch_norms(model).items())


def row(value: Any) -> np.ndarray | None:
    """A tensor as a flat float64 array on the CPU; None stays None, and so does a meta tensor."""
    if not isinstance(value, Tensor) or value.device.type == "meta":
        return None
    return value.detach().to("cpu", torch.float64).reshape(-1).numpy().copy()


def hidden_batch_norms(model: nn.Module) -> tuple[str, ...]:
    """Attributes that hold batch norms in plain lists or dictionaries: no parameter of the model.

    Args:
        model: Any module.

    Returns:
        Where they are, such as "blocks[2]".
    """
    registered = {id(m) for m in model.modules()}
    found = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_"):
                place = f"{name}.{key}" if name else key
                found += _inside(value, place, registered, _HIDDEN_DEPTH)
    return tuple(found)


def _inside(value: Any, place: str, registered: set[int], depth: int) -> list[str]:
    if isinstance(value, nn.Module):
        if id(value) in registered:
            return []
        hidden = [m for m in value.modules() if is_batch_norm(m)]
        return [place] if hidden else []
    if depth == 0:
        return []
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    return [f for k, v in items for f in _inside(v, f"{place}[{k!r}]", registered, depth - 1)]


def _read(model: nn.Module, name: str, layer: Any) -> BatchNormRecord:
    mean, var = _get(layer, "running_mean"), _get(layer, "running_var")
    weight, bias = _get(layer, "weight"), _get(layer, "bias")
    parameters = [t for t in (weight, bias) if isinstance(t, nn.Parameter)]
    batches = _get(layer, "num_batches_tracked")
    policy = getattr(layer, "_policy", None)
    fixed = getattr(policy, "normalize", None) == "running"
    fixed = fixed or (not isinstance(layer, _BatchNorm) and "running_mean" in layer._buffers
                      and not parameters and not hasattr(layer, "momentum"))  # fmt: skip
    first = next((t for t in (mean, weight, bias) if isinstance(t, Tensor)), None)
    features = getattr(layer, "num_features", None)
    if not isinstance(features, int):
        features = 0 if first is None else first.numel()
    axis = getattr(layer, "axis", 1)
    axis = axis[0] if isinstance(axis, tuple) and len(axis) == 1 else axis
    return BatchNormRecord(
        name=name,
        kind=type(layer).__name__,
        num_features=features,
        eps=getattr(layer, "eps", None),
        ema_weight=getattr(layer, "momentum", None),
        knows_hyperparameters=hasattr(layer, "momentum"),
        weight=row(weight),
        bias=row(bias),
        running_mean=row(mean),
        running_var=row(var),
        batches=_count(batches),
        statistics_dtype=str(mean.dtype).removeprefix("torch.") if mean is not None else None,
        training=layer.training,
        tracks=not fixed and bool(getattr(layer, "track_running_stats", mean is not None)),
        fixed=fixed,
        trainable=any(p.requires_grad for p in parameters) if parameters else None,
        channel_axis=axis if isinstance(axis, int | tuple) else 1,
        built_at=built_at(model, name),
    )


def _count(batches: Any) -> int | None:
    if not isinstance(batches, Tensor) or batches.device.type == "meta" or batches.numel() != 1:
        return None
    return int(batches)


def _get(layer: Any, name: str) -> Any:
    return getattr(layer, name, None)


def _tensors(module: nn.Module) -> list[Any]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]

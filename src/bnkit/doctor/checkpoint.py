"""Read the batch norms of a checkpoint, without running anything that is inside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnkit.core.errors import InputError
from bnkit.doctor.find import row
from bnkit.doctor.record import BatchNormRecord

_STATISTICS = ("running_mean", "running_var")
_WRAPPED = ("state_dict", "model_state_dict", "model", "module", "state", "net", "weights")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name.

    Args:
        path: A `.safetensors` file, or one of `torch.save`, which is read with
            `weights_only=True`: nothing in it is executed.

    Returns:
        The state_dict.

    Raises:
        InputError: No such file, a damaged one, or one that needs code to run.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"{path}: expected a checkpoint, found no such file."
        raise InputError(msg)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(_refusal(path, error)) from error
    return _tensors(content, path)


def read_records(tensors: Mapping[str, Any]) -> tuple[BatchNormRecord, ...]:
    """The batch norms of a state_dict: groups of tensors with a running mean or variance.

    Args:
        tensors: A state_dict.

    Returns:
        One record per group, in the order of the keys; modes, eps and ema_weight are not in a
        checkpoint.

    Example:
        >>> from torch import nn
        >>> [r.name for r in read_records(nn.Sequential(nn.BatchNorm1d(2)).state_dict())]
        ['0']
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        prefix, _, last = key.rpartition(".")
        if last in _STATISTICS and isinstance(value, Tensor):
            groups.setdefault(prefix, {})
    for prefix, group in groups.items():
        for last in (*_STATISTICS, "weight", "bias", "num_batches_tracked"):
            value = tensors.get(f"{prefix}.{last}" if prefix else last)
            if isinstance(value, Tensor):
                group[last] = value
    return tuple(_record(name, group) for name, group in groups.items())


def _record(name: str, group: Mapping[str, Tensor]) -> BatchNormRecord:
    first = next(group[k] for k in _STATISTICS if k in group)
    batches = group.get("num_batches_tracked")
    return BatchNormRecord(
        name=name,
        kind="state_dict",
        num_features=first.numel(),
        weight=row(group.get("weight")),
        bias=row(group.get("bias")),
        running_mean=row(group.get("running_mean")),
        running_var=row(group.get("running_var")),
        batches=int(batches) if batches is not None and batches.numel() == 1 else None,
        statistics_dtype=str(first.dtype).removeprefix("torch."),
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        msg = f"{path}: expected a safetensors file, got a damaged one ({error}). Copy it again."
        raise InputError(msg) from error


def _refusal(path: Path, error: Exception) -> str:
    text = str(error)
    if "weights_only" in text or "Unsupported" in text or "WeightsUnpickler" in text:
        return (
            f"{path}: expected tensors alone, got a pickle that runs code when it is opened, so it "
            "was not. Save model.state_dict() or a .safetensors file, or name the function that "
            "builds the model: bnkit doctor file.py:build --weights ..."
        )
    reason = text.splitlines()[0][:200] if text else type(error).__name__
    return (
        f"{path}: expected a checkpoint of torch.save or a .safetensors file, got one that cannot "
        f"be read ({reason}). Is it complete? Copy it again."
    )


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        if any(isinstance(v, Tensor) for v in content.values()):
            return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = next((k for k in _WRAPPED if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    got = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        got += f" with the keys {', '.join(map(str, list(content)[:8]))}"
    msg = f"{path}: expected a state_dict, got {got}. Save model.state_dict()."
    raise InputError(msg)

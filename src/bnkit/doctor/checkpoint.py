"""The batch norms of a checkpoint."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bnkit.doctor.find import row
from bnkit.doctor.record import BatchNormRecord

_STATISTICS = ("running_mean", "running_var")


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

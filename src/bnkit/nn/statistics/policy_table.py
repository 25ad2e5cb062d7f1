"""Reading what updates when, layer by layer."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from bnkit.nn.statistics.statistics_policy import StatisticsPolicy, WithPolicy, batch_norms

_UPDATES = {
    "forward": "each forward pass",
    "commit": "when committed",
    "never": "never",
}
_TITLES = {
    "name": "layer",
    "kind": "class",
    "mode": "mode",
    "normalizes_with": "normalizes with",
    "updates": "statistics change",
    "recomputation": "recomputation",
    "nonfinite": "NaN or infinity",
    "affine": "weight, bias",
    "batches": "batches",
}


@dataclass(frozen=True, slots=True)
class LayerPolicy:
    """What one layer does now.

    Attributes:
        name: Its qualified name in the model.
        kind: Its class.
        mode: `"train"` or `"eval"`: what it was last asked for.
        normalizes_with: `"batch"`, `"running"`, `"running (frozen)"`, or `"running (not
            trainable)"`, which a `BatchNorm` can be.
        updates: When a batch enters the running statistics.
        recomputation: Whether a pass repeated by activation checkpointing enters as well.
        nonfinite: What happens to a batch with NaN or infinity.
        affine: Whether weight and bias are trained; `"none"` without them.
        batches: `num_batches_tracked`; None without a counter.
        policy: The object behind it; None for a layer of torch.
    """

    name: str
    kind: str
    mode: str
    normalizes_with: str
    updates: str
    recomputation: str
    nonfinite: str
    affine: str
    batches: int | None
    policy: StatisticsPolicy | None


@dataclass(frozen=True, slots=True)
class PolicyTable:
    """The rows of a model; `print` shows them as a table.

    Attributes:
        rows: One for each batch norm, in the order of the model.
    """

    rows: tuple[LayerPolicy, ...]

    def __iter__(self) -> Iterator[LayerPolicy]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> LayerPolicy:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows as plain data."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        if not self.rows:
            return "no batch norm"
        lines = [list(_TITLES.values())]
        lines += [[_cell(getattr(row, key)) for key in _TITLES] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
        )
        return "\n".join(line.rstrip() for line in padded)


def policy(model: nn.Module) -> PolicyTable:
    """What every batch norm of a model normalizes with, and what updates when. Changes nothing.

    Layers of torch are listed too: they count every forward pass, also one that activation
    checkpointing repeats, and one with NaN.

    Args:
        model: Any module. Reading the counters of a GPU waits for it.

    Returns:
        A table of frozen rows, which prints as text.

    Raises:
        PolicyError: Not a module.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(bnkit.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2))
        >>> _ = bnkit.nn.freeze_(model[0], affine=True)
        >>> table = bnkit.nn.policy(model)
        >>> table["0"].normalizes_with, table["0"].updates, table["0"].affine
        ('running (frozen)', 'never', 'frozen')
        >>> table["1"].updates, table["1"].recomputation
        ('each forward pass', 'counts again')
    """
    return PolicyTable(tuple(_row(*item) for item in batch_norms(model, "policy").items()))


def _row(name: str, layer: Any) -> LayerPolicy:
    ours = layer.statistics_policy if _is_ours(layer) else None
    training = layer.training if ours is None or layer._thaw is None else layer._thaw.training
    updates = _updates(layer, ours)
    return LayerPolicy(
        name=name,
        kind=type(layer).__name__,
        mode="train" if training else "eval",
        normalizes_with=_normalizes_with(layer, ours),
        updates=updates,
        recomputation=_recomputation(ours, updates),
        nonfinite=getattr(layer, "on_nonfinite", "propagate"),
        affine=_affine(layer),
        batches=_batches(layer),
        policy=ours,
    )


def _is_ours(layer: Any) -> bool:
    return isinstance(layer, WithPolicy)


def _normalizes_with(layer: Any, ours: StatisticsPolicy | None) -> str:
    if ours is not None and ours.normalize == "running":
        return "running (frozen)"
    stopped = getattr(layer, "frozen_normalizes_with", "batch") == "running"
    if stopped and not layer.trainable:
        return "running (not trainable)"
    return "batch" if layer.training or layer.running_mean is None else "running"


def _updates(layer: Any, ours: StatisticsPolicy | None) -> str:
    if not layer.track_running_stats or layer.running_mean is None or not layer.training:
        return "never"
    if not getattr(layer, "trainable", True):
        return "never"
    if ours is None:
        return _UPDATES["forward"]
    return "never" if ours.normalize == "running" else _UPDATES[ours.update]


def _recomputation(ours: StatisticsPolicy | None, updates: str) -> str:
    if updates == "never":
        return "-"
    return "counts once" if ours is not None and ours.recompute == "skip" else "counts again"


def _affine(layer: nn.Module) -> str:
    wanted = [p.requires_grad for p in layer.parameters(recurse=False)]
    if not wanted:
        return "none"
    if any(wanted):
        return "trained" if all(wanted) else "partly frozen"
    return "frozen"


def _batches(layer: Any) -> int | None:
    counter = layer.num_batches_tracked
    return None if counter is None or counter.device.type == "meta" else int(counter)


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)

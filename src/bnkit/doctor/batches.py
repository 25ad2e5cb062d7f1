"""Batches of any form: what goes into the model, and the labels beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bnkit.core.errors import InputError
from bnkit.sources.batches import Batches, placed
from bnkit.sources.modules import device_of, dtype_of

Forward = Callable[[nn.Module, Any], Any]

_LABELS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch.

    Attributes:
        args: Positional inputs of the model.
        kwargs: Inputs by name.
        target: Labels, or None.
        forward: Runs the model on the batch as it came; None calls it with `args` and `kwargs`.
        raw: The batch as it came.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Tensor | None
    forward: Forward | None = None
    raw: Any = None

    def run(self, model: nn.Module) -> Any:
        """What the model makes of the batch."""
        if self.forward is not None:
            return self.forward(model, self.raw)
        return model(*self.args, **self.kwargs)

    @property
    def inputs(self) -> list[Tensor]:
        """All floating point inputs."""
        given = self.raw if self.forward is not None else (self.args, dict(self.kwargs))
        tensors = [t for t in tree_leaves(given) if isinstance(t, Tensor)]
        return [t for t in tensors if t.is_floating_point()]

    @property
    def empty(self) -> bool:
        """Whether it has a dimension for samples, but no sample."""
        rows = self._rows
        return rows is not None and not len(rows)

    @property
    def _rows(self) -> Tensor | None:
        given = self.raw if self.forward is not None else (self.args, dict(self.kwargs))
        return next((t for t in tree_leaves(given) if isinstance(t, Tensor) and t.ndim), None)

    def __len__(self) -> int:
        rows = self._rows
        return 0 if rows is None else len(rows)

    def first(self, rows: int) -> "Batch":
        """The batch with its first rows alone."""
        size = len(self)
        if size <= rows:
            return self
        return self.replaced(lambda t: t[:rows] if t.ndim and len(t) == size else t)

    def replaced(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor of its inputs changed."""

        def apply(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        args, kwargs = tree_map(apply, (self.args, dict(self.kwargs)))
        raw = None if self.forward is None else tree_map(apply, self.raw)
        return Batch(args, kwargs, self.target, self.forward, raw)


def read_batches(
    data: Any, *, limit: int, batch_size: int, forward: Forward | None, model: nn.Module
) -> list[Batch]:
    """The first batches of any kind of data.

    Args:
        data: Any form of data that `bnkit.sources.batches.Batches` knows.
        limit: Batches to take.
        batch_size: Rows of a batch when `data` is cut.
        forward: Runs the model on one batch; for batches of other forms.
        model: They are moved to where it is.

    Returns:
        At least one batch, on the device.

    Raises:
        InputError: No batches, a batch of an unknown form, or NaN in an input.
    """
    found = []
    for number, raw in enumerate(Batches(data, batch_size, limit)):
        batch = _formed(placed(raw, device_of(model), dtype_of(model)), forward, number)
        if any(not bool(t.isfinite().all()) for t in batch.inputs):
            msg = (
                f"batch {number}: expected finite inputs, got NaN or infinity. Clean the data, or "
                "give other batches: nothing can be measured with these."
            )
            raise InputError(msg)
        found.append(batch)
    kept = [batch for batch in found if not batch.empty]
    if not kept:
        got = f"{len(found)} without samples" if found else "none"
        msg = f"data: expected at least one batch, got {got}. Is the loader empty or used up?"
        raise InputError(msg)
    return kept


def logits(output: Any) -> Tensor | None:
    """The first floating point tensor that a model returned, such as `.logits`."""
    value = getattr(output, "logits", output)
    tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point()]
    return tensors[0] if tensors else None


def _formed(raw: Any, forward: Forward | None, number: int) -> Batch:
    if forward is not None:
        return Batch((), {}, _last_target(raw), forward, raw)
    if isinstance(raw, Tensor):
        return Batch((raw,), {}, None)
    if isinstance(raw, tuple | list) and 1 <= len(raw) <= 2 and isinstance(raw[0], Tensor):
        target = raw[1] if len(raw) == 2 and isinstance(raw[1], Tensor) else None
        return Batch((raw[0],), {}, target)
    if isinstance(raw, Mapping):
        name = next((k for k in _LABELS if isinstance(raw.get(k), Tensor)), None)
        kwargs = {k: v for k, v in raw.items() if k != name}
        return Batch((), kwargs, None if name is None else raw[name])
    parts = f" of {len(raw)}" if isinstance(raw, tuple | list) else ""
    msg = (
        f"batch {number}: expected a tensor, (inputs, labels) or a dictionary, got "
        f"{type(raw).__name__}{parts}. Pass forward=lambda model, batch: ..."
    )
    raise InputError(msg)


def _last_target(raw: Any) -> Tensor | None:
    if isinstance(raw, Mapping):
        return next((raw[k] for k in _LABELS if isinstance(raw.get(k), Tensor)), None)
    if isinstance(raw, tuple | list) and len(raw) > 1 and isinstance(raw[-1], Tensor):
        return raw[-1]
    return None

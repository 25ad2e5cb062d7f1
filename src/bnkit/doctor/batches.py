"""Batches of any form: what goes into the model, and the labels beside it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bnkit.core.errors import InputError

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

    def __len__(self) -> int:
        given = self.raw if self.forward is not None else (self.args, dict(self.kwargs))
        tensors = [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.ndim]
        return len(tensors[0]) if tensors else 0

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
    data: Any, *, limit: int, batch_size: int, forward: Forward | None, device: torch.device
) -> list[Batch]:
    """The first batches of any kind of data.

    Args:
        data: A loader or other iterable of batches; or one tensor, or a pair (inputs, labels) of
            tensors with as many rows, which are cut into batches.
        limit: Batches to take.
        batch_size: Rows of a batch when `data` is tensors.
        forward: Runs the model on one batch; for batches of other forms.
        device: Where the model is.

    Returns:
        At least one batch, on the device.

    Raises:
        InputError: No batches, a batch of an unknown form, or NaN in an input.
    """
    found = []
    for number, raw in enumerate(_pieces(data, batch_size)):
        if number == limit:
            break
        batch = _moved(raw, forward, device, number)
        if any(not bool(t.isfinite().all()) for t in batch.inputs):
            msg = (
                f"batch {number}: expected finite inputs, got NaN or infinity. Clean the data, or "
                "give other batches: nothing can be measured with these."
            )
            raise InputError(msg)
        found.append(batch)
    if not found:
        msg = "data: expected at least one batch, got none. Is the loader empty or used up?"
        raise InputError(msg)
    return found


def logits(output: Any) -> Tensor | None:
    """The first floating point tensor that a model returned, such as `.logits`."""
    value = getattr(output, "logits", output)
    tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point()]
    return tensors[0] if tensors else None


def _pieces(data: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(data, Tensor):
        return iter(data.split(batch_size))
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)
    if pair and data[0].ndim and data[1].ndim and len(data[0]) == len(data[1]):
        return zip(data[0].split(batch_size), data[1].split(batch_size), strict=True)
    if not isinstance(data, Iterable):
        msg = (
            f"data: expected a loader, an iterable of batches or tensors, got "
            f"{type(data).__name__}. Pass a DataLoader or (inputs, labels)."
        )
        raise InputError(msg)
    if isinstance(data, Sized) and len(data) == 0:
        return iter(())
    return iter(data)


def _moved(raw: Any, forward: Forward | None, device: torch.device, number: int) -> Batch:
    def to(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    raw = tree_map(to, raw)
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

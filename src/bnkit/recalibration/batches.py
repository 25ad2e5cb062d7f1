"""What counts as data, and how a batch reaches the model."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bnkit.core import InputError

Forward = Callable[[nn.Module, Any], Any]
_EXPECTED = (
    "expected batches (a DataLoader, a list), a Dataset, or a tensor, array, tuple or dict of them "
    "with the samples along dimension 0"
)


class Batches:
    """The batches of any form of data, as often as they are wanted.

    Args:
        data: An iterable of batches; a Dataset; or one tensor, array, tuple or dict of them, which
            is cut into batches.
        batch_size: Samples per batch where the data is cut.
        most: The most batches to take; None = all.

    Raises:
        InputError: Something else.
    """

    def __init__(self, data: Any, batch_size: int = 64, most: int | None = None) -> None:
        self.source = _source(data, batch_size)
        self.most = most
        self.once = isinstance(self.source, Iterator)

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.source), self.most)

    def total(self) -> int | None:
        """How many there are, if that is known."""
        try:
            size = len(self.source) if isinstance(self.source, Sized) else None
        except TypeError:  # a DataLoader over an iterable of unknown length
            size = None
        return self.most if size is None else min(size, self.most or size)


class _Cut:
    """A data set in memory, cut into batches."""

    def __init__(self, data: Any, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size
        leaves = list(_leaves(data))
        sizes = {len(v) if v.ndim else -1 for v in leaves}
        if len(sizes) != 1 or sizes == {-1}:
            shapes = ", ".join(str(tuple(v.shape)) for v in leaves)
            msg = (
                "recalibrate: expected tensors with the same number of samples, got shapes "
                f"{shapes or 'of nothing'}. Pass a list for a list of batches, a tuple for one "
                "data set of several tensors."
            )
            raise InputError(msg)
        self.samples = sizes.pop()

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.samples, self.batch_size):
            yield _each(self.data, lambda v, s=start: v[s : s + self.batch_size])


def _source(data: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(data, Tensor | np.ndarray | Mapping):
        return _Cut(data, batch_size)
    if isinstance(data, tuple) and data and all(isinstance(v, Tensor | np.ndarray) for v in data):
        return _Cut(data, batch_size)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, batch_size)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return data
    msg = f"recalibrate: {_EXPECTED}, got {type(data).__name__}."
    raise InputError(msg)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _leaves(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _leaves(v)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure with every tensor and array changed."""
    if isinstance(value, Tensor | np.ndarray):
        return change(value)
    if isinstance(value, Mapping):
        changed = {k: _each(v, change) for k, v in value.items()}
        try:
            return type(value)(changed)  # pyright: ignore[reportCallIssue]
        except TypeError:
            return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each(v, change) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_each(v, change) for v in value)
    return value


def samples_of(batch: Any) -> int:
    """Samples of a batch: the length of its first tensor."""
    first = next((v for v in _leaves(batch) if v.ndim), None)
    return 0 if first is None else len(first)


def placed(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A batch on the device of the model.

    Args:
        batch: Any structure of tensors and arrays.
        device: Where to.
        dtype: What arrays of floating point numbers become, whose float64 is only NumPy's habit.

    Returns:
        The same structure of tensors.
    """

    def place(value: Tensor | np.ndarray) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return _each(batch, place)


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch of any form.

    A dict gives the arguments by name, without those that `model.forward` does not have (labels).
    Of a tuple or list the first entry is the input, as loaders give `(input, target)`.

    Args:
        model: The model.
        batch: A batch.

    Returns:
        Its output.

    Raises:
        InputError: No entry of a dict is an argument, or a tuple is empty.
    """
    if isinstance(batch, Mapping):
        taken = _arguments(model)
        given = {k: v for k, v in batch.items() if taken is None or k in taken}
        if not given:
            msg = (
                f"recalibrate: expected a batch with arguments of {type(model).__name__}.forward "
                f"({', '.join(taken or ())}), got a dict of {', '.join(map(repr, batch))}. Pass "
                "forward=lambda model, batch: ..."
            )
            raise InputError(msg)
        return model(**given)
    if isinstance(batch, tuple | list):
        if not batch:
            msg = "recalibrate: expected a batch (input, ...), got an empty tuple or list."
            raise InputError(msg)
        return model(batch[0])
    return model(batch)


def _arguments(model: nn.Module) -> tuple[str, ...] | None:
    """The names that a forward pass takes; None = any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def described(batch: Any) -> str:
    """A batch in a few words, for a message."""
    shapes = [f"{str(v.dtype).removeprefix('torch.')} {tuple(v.shape)}" for v in _leaves(batch)]
    return f"{type(batch).__name__} of {', '.join(shapes[:4]) or 'no tensor'}"

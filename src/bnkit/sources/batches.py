"""Batches of any form of data, and the way to the device of a model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bnkit.core.errors import BatchNormError, InputError

_EXPECTED = (
    "expected batches (a DataLoader, a list), a Dataset, or a tensor, array, tuple or dict of them "
    "with the samples along dimension 0"
)

_END = object()


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
        batches, number = _drawn(lambda: iter(self.source), 0), 0
        while self.most is None or number < self.most:
            batch = _drawn(lambda: next(batches, _END), number)
            if batch is _END:
                return
            yield batch
            number += 1

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
        found = list(leaves(data))
        sizes = {len(v) if v.ndim else -1 for v in found}
        if len(sizes) != 1 or sizes == {-1}:
            shapes = ", ".join(str(tuple(v.shape)) for v in found)
            msg = (
                "data: expected tensors with the same number of samples, got shapes "
                f"{shapes or 'of nothing'}. Pass a list for a list of batches, a tuple for one "
                "data set of several tensors."
            )
            raise InputError(msg)
        self.samples = sizes.pop()

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.samples, self.batch_size):
            yield each(self.data, lambda v, s=start: v[s : s + self.batch_size])


def _drawn(draw: Callable[[], Any], number: int) -> Any:
    """What the loader of the user gives; only errors of its own are its own."""
    try:
        return draw()
    except BatchNormError:
        raise
    except Exception as error:
        first = str(error).partition("\n")[0]
        msg = (
            f"data: expected batch {number}, got an error of the loader ({type(error).__name__}: "
            f"{first}). Mend the loader."
        )
        raise InputError(msg) from error


def _source(data: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(data, Tensor) and data.layout is not torch.strided:
        msg = f"data: expected dense tensors, got one of layout {data.layout}. Call .to_dense()."
        raise InputError(msg)
    if isinstance(data, Tensor | np.ndarray | Mapping):
        return _Cut(data, batch_size)
    if isinstance(data, tuple) and data and all(isinstance(v, Tensor | np.ndarray) for v in data):
        _check_no_batches(data)
        return _Cut(data, batch_size)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, batch_size)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return data
    msg = f"data: {_EXPECTED}, got {type(data).__name__}."
    raise InputError(msg)


def _check_no_batches(data: tuple[Any, ...]) -> None:
    """Refuse what `Tensor.split` gives, of which only the first batch would be looked at."""
    like = {(tuple(v.shape), v.dtype) for v in data}
    if len(data) > 2 and len(like) == 1 and data[0].ndim > 1:
        msg = (
            f"data: expected one data set of several tensors in a tuple, got {len(data)} of the "
            f"same shape {tuple(data[0].shape)}. Are they batches? Pass a list of them."
        )
        raise InputError(msg)


def leaves(value: Any) -> Iterator[Any]:
    """The tensors and arrays of a structure."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from leaves(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from leaves(v)


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure with every tensor and array changed."""
    if isinstance(value, Tensor | np.ndarray):
        return change(value)
    if isinstance(value, Mapping):
        changed = {k: each(v, change) for k, v in value.items()}
        try:
            return type(value)(changed)  # pyright: ignore[reportCallIssue]
        except TypeError:
            return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each(v, change) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(each(v, change) for v in value)
    return value


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
            return _moved(value, device)
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return each(batch, place)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    try:
        return tensor.to(device, non_blocking=True)
    except (RuntimeError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        msg = (
            f"data: expected a batch that can be moved to {device}, where the model is, got a "
            f"tensor on {tensor.device} ({first})."
        )
        raise InputError(msg) from error

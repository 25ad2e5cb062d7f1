"""HDF5 files through h5py, as far as Keras writes them; nothing outside of the file is opened.

h5py finds the datasets; their bytes are then mapped by this package. Links to other files, data
kept in other files and virtual datasets are refused, because a file could read the disk with them.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bnkit.core.errors import CheckpointError
from bnkit.formats.checkpoint import StoredTensor
from bnkit.formats.dtypes import SIZES, byte_count, decode
from bnkit.formats.mapped import Mapped

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_FILTERS = {"gzip", "shuffle", "fletcher32", "lzf"}  # the ones that are part of h5py itself
_MAX_DEPTH = 64
_MAX_OBJECTS = 1_000_000
_MAX_RATIO, _SMALL = 100, 1 << 24  # of chunked data, which need not be stored at all


@dataclass(frozen=True)
class Hdf5:
    """What is in a file.

    Attributes:
        tensors: Datasets by their path, in natural order.
        attributes: Of each group by its path (`""` for the root), decoded to text where it is text.
    """

    tensors: dict[str, StoredTensor]
    attributes: dict[str, dict[str, Any]] = field(repr=False)


def read_hdf5(source: Mapped) -> Hdf5:
    """Read the structure of a file.

    Args:
        source: Its bytes.

    Returns:
        Datasets and attributes.

    Raises:
        CheckpointError: h5py is missing, or the file is damaged or leads outside of itself.
    """
    found = Hdf5({}, {})
    with _opened(source) as file:
        try:
            for path, group in _groups(source, file):
                found.attributes[path] = _attributes(source, path, group)
                for name, dataset in _datasets(source, path, group):
                    found.tensors[name] = _tensor(source, name, dataset)
        except CheckpointError:
            raise
        except _DAMAGE as error:
            raise _damaged(source, error) from error
    return found


_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)


class _View(io.RawIOBase):
    """Mapped bytes as the file object that h5py asks for."""

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        piece = self._data[self._at : self._at + len(target)]
        target[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _opened(source: Mapped) -> Any:
    try:
        import h5py
    except ImportError as error:
        msg = (
            f"{str(source.path)!r}: expected h5py, which reads Keras' HDF5 files, got: {error}. "
            "Install it: pip install h5py."
        )
        raise CheckpointError(msg) from error
    try:
        return h5py.File(_View(source.data), "r")
    except _DAMAGE as error:
        raise _damaged(source, error) from error


def _damaged(source: Mapped, error: Exception) -> CheckpointError:
    return source.error("structure", "an HDF5 file", f"a damaged one ({str(error)[:120]})")


def _groups(source: Mapped, file: Any) -> Iterator[tuple[str, Any]]:
    """All groups, each once."""
    waiting, seen = [("", file, 0)], set()
    while waiting:
        path, group, depth = waiting.pop()
        if depth > _MAX_DEPTH or len(seen) > _MAX_OBJECTS:
            raise source.error(f"group {path!r:.120}", f"at most {_MAX_DEPTH} levels", "more")
        address = group.id.__hash__()
        if address in seen:
            raise source.error(f"group {path!r:.120}", "groups in a tree", "one with two parents")
        seen.add(address)
        yield path, group
        children = [(name, _child(source, path, group, name)) for name in _natural(group)]
        for name, child in reversed(children):
            if hasattr(child, "keys"):
                waiting.append((f"{path}/{name}".lstrip("/"), child, depth + 1))


def _datasets(source: Mapped, path: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name in _natural(group):
        child = _child(source, path, group, name)
        if hasattr(child, "shape"):
            yield f"{path}/{name}".lstrip("/"), child


def _natural(group: Any) -> list[str]:
    """Names with `2` before `10`."""
    return sorted(
        group.keys(), key=lambda name: (not name.isdecimal(), len(name) * name.isdecimal(), name)
    )


def _child(source: Mapped, path: str, group: Any, name: str) -> Any:
    link = group.get(name, getlink=True)
    if type(link).__name__ != "HardLink":
        place = f"group {path!r:.120}, link {name!r:.80}"
        raise source.error(
            place, "an object of this file", "a link to elsewhere; it was not opened"
        )
    return group[name]


def _attributes(source: Mapped, path: str, group: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in group.attrs:
        space = group.attrs.get_id(name)
        if int(np.prod(space.shape, dtype=object) if space.shape else 1) > len(source):
            place = f"group {path!r:.120}, attribute {name!r:.80}"
            raise source.error(place, "a size within that of the file", f"{space.shape}")
        value = group.attrs[name]
        if isinstance(value, np.ndarray):
            value = [_text(source, one) for one in value.reshape(-1).tolist()]
        found[name] = _text(source, value)
    return found


def _text(source: Mapped, value: Any) -> Any:
    return source.text(value, "attribute") if isinstance(value, bytes) else value


def _tensor(source: Mapped, name: str, dataset: Any) -> StoredTensor:
    place = f"dataset {name!r}"
    if dataset.external or dataset.is_virtual:
        raise source.error(place, "data inside of the file", "data elsewhere; it was not opened")
    if dataset.shape is None:
        raise source.error(place, "a tensor", "an empty dataset without a shape")
    shape = tuple(map(int, dataset.shape))
    stored, dtype = dataset.dtype, _dtype_name(dataset)
    if dtype not in SIZES:
        return StoredTensor(name, dtype, shape, partial(_refuse, source, place, dtype))
    size = byte_count(source, place, dtype, shape)
    offset = dataset.id.get_offset()
    if offset is not None and not dataset.chunks and stored.byteorder != ">":
        # relative to the user block, which h5py counts from the beginning of the file
        load = partial(_mapped, source, (place, offset, size), dtype, shape)
        source.take(offset, size, place)
        return StoredTensor(name, dtype, shape, load)
    held = dataset.id.get_storage_size()
    if not _filters(dataset) <= _FILTERS or size > max(_MAX_RATIO * held, _SMALL):
        got = f"{held} bytes with filters {sorted(_filters(dataset))}"
        raise source.error(place, f"about {size} bytes, or gzip or lzf", got)
    return StoredTensor(name, dtype, shape, partial(_through_h5py, source, name, dtype))


def _dtype_name(dataset: Any) -> str:
    stored = dataset.dtype
    if stored.kind == "V" and stored.itemsize == 2 and stored.names is None:
        return "bfloat16"  # how Keras stores it, NumPy having no such dtype
    if stored.kind in "OS":
        return "string"
    return stored.newbyteorder("=").name if stored.names is None else "compound"


def _filters(dataset: Any) -> set[str]:
    names = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
    plist = dataset.id.get_create_plist()
    codes = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    return {names.get(code, f"filter {code}") for code in codes}


def _mapped(
    source: Mapped, span: tuple[str, int, int], dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
    place, offset, size = span
    return decode(source, place, source.take(offset, size, place), dtype, shape)


def _through_h5py(source: Mapped, name: str, dtype: str) -> np.ndarray:
    with _opened(source) as file:
        try:
            array = np.asarray(file[name][()])
        except _DAMAGE as error:
            raise _damaged(source, error) from error
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    return decode(source, f"dataset {name!r}", little, dtype, array.shape)


def _refuse(source: Mapped, place: str, dtype: str) -> np.ndarray:
    raise source.error(place, f"a dtype of {', '.join(SIZES)}", dtype)

"""HDF5 files as far as Keras writes them: groups, attributes of text, datasets in one piece."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from bnkit.formats.checkpoint import StoredTensor
from bnkit.formats.dtypes import SIZES, byte_count, decode
from bnkit.formats.hdf5_groups import children, is_group
from bnkit.formats.hdf5_objects import UNDEFINED, Cursor, Header, messages, root_address
from bnkit.formats.hdf5_values import TextHeaps, attributes, dataspace, datatype
from bnkit.formats.mapped import Mapped

_MAX_DEPTH = 64
_MAX_OBJECTS = 1 << 18
_MAX_MESSAGES = 1 << 22  # of all objects together
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT = 0x01, 0x03, 0x07, 0x08
_COMPACT, _CONTIGUOUS = 0, 1

Attributes = dict[str, str | list[str]]


@dataclass(frozen=True)
class Hdf5:
    """What is in a file.

    Attributes:
        tensors: Datasets by their path, in natural order.
        attributes: Texts of each group by its path (`""` for the root).
    """

    tensors: dict[str, StoredTensor]
    attributes: dict[str, Attributes] = field(repr=False)


def read_hdf5(source: Mapped) -> Hdf5:
    """Read the structure of a file.

    Args:
        source: Its bytes.

    Returns:
        Datasets and attributes.

    Raises:
        CheckpointError: The file is damaged, leads outside of itself, or has a layout that Keras
            does not write.
    """
    found = Hdf5({}, {})
    waiting, seen = [("", root_address(source), 0)], set()
    heaps, objects, read = TextHeaps(source), 0, 0
    while waiting:
        path, address, depth = waiting.pop()
        place = f"object '/{path:.200}'"
        source.named(path, "path of an object")
        objects += 1
        if depth > _MAX_DEPTH or objects > _MAX_OBJECTS:
            raise source.error(place, f"at most {_MAX_DEPTH} levels", "more, or too many objects")
        headers = messages(source, address, place)
        read += len(headers)
        if read > _MAX_MESSAGES:
            raise source.error(place, f"at most {_MAX_MESSAGES} messages", "more")
        texts = attributes(heaps, headers, place)
        if not is_group(headers):
            if path in found.tensors:
                raise source.error(place, "names that differ", "this one twice")
            found.tensors[path] = _tensor(source, path, headers, texts)
            continue
        if address in seen:
            raise source.error(place, "groups in a tree", "one with two parents")
        seen.add(address)
        found.attributes[path] = texts
        inner = sorted(children(source, headers, place), key=lambda one: _natural(one[0]))
        waiting += [
            (f"{path}/{name}".lstrip("/"), child, depth + 1) for name, child in reversed(inner)
        ]
    return found


def _natural(name: str) -> tuple[bool, int, str]:
    """The order in which `2` is before `10`."""
    number = name.isdecimal() and name.isascii()
    return not number, len(name) if number else 0, name


def _tensor(source: Mapped, name: str, headers: list[Header], texts: Attributes) -> StoredTensor:
    place = f"dataset {name!r:.200}"
    by_kind = {one.kind: one.data for one in headers}
    if _EXTERNAL in by_kind:
        raise source.error(place, "data inside of the file", "data elsewhere; it was not opened")
    if not {_DATASPACE, _DATATYPE, _LAYOUT} <= by_kind.keys():
        raise source.error(place, "a dataset with shape, type and layout", "another object")
    shape, stored = dataspace(by_kind[_DATASPACE], place), datatype(by_kind[_DATATYPE], place)
    if shape is None:
        raise source.error(place, "a tensor", "an empty dataset without a shape")
    dtype = stored.name
    if dtype == "opaque":  # how Keras stores what NumPy has no dtype for
        named = texts.get("dtype", "bfloat16")
        dtype = named if isinstance(named, str) and SIZES.get(named) == stored.size else dtype
    if dtype not in SIZES:
        return StoredTensor(name, dtype, shape, partial(_refuse, source, place, dtype))
    size = byte_count(source, place, dtype, shape)
    data = _content(source, by_kind[_LAYOUT], size, place)
    return StoredTensor(name, dtype, shape, partial(decode, source, place, data, dtype, shape))


def _content(source: Mapped, layout: Mapped, size: int, place: str) -> memoryview:
    """The bytes of a dataset (section IV.A.2.i)."""
    cursor = Cursor(layout, 0, place)
    version, kind = cursor.number(1), cursor.number(1)
    if version not in (3, 4) or kind not in (_COMPACT, _CONTIGUOUS):
        raise source.error(
            place,
            "data in one piece, as Keras stores it",
            "chunks, or another layout (open it with h5py and write it again without compression)",
        )
    if kind == _COMPACT:
        return _exactly(source, cursor.take(cursor.number(2)), size, place)
    address, held = cursor.number(8), cursor.number(8)
    if not size:
        return memoryview(b"")
    if address == UNDEFINED:
        raise source.error(place, f"{size} bytes of data", "a dataset that was never written")
    return _exactly(source, source.take(address, held, place), size, place)


def _exactly(source: Mapped, data: memoryview, size: int, place: str) -> memoryview:
    if len(data) != size:
        raise source.error(place, f"{size} bytes of data", f"{len(data)}")
    return data


def _refuse(source: Mapped, place: str, dtype: str) -> np.ndarray:
    raise source.error(place, f"a dtype of {', '.join(SIZES)}", dtype)

"""TensorFlow's V1 checkpoints: everything in one sorted table, tensors as messages."""

from functools import partial

import numpy as np

from bnkit.formats.by_name import entries_by_name
from bnkit.formats.checkpoint import Checkpoint, StoredTensor
from bnkit.formats.dtypes import byte_count, decode
from bnkit.formats.mapped import Mapped
from bnkit.formats.sstable import table_entries
from bnkit.formats.tf_slices import Part, assemble, check_cover
from bnkit.formats.tf_types import STRING, Extent, dtype_name, extents_of, shape_of
from bnkit.formats.wire import Message, parse

_FIXED = {"float32": 5, "float64": 6, "complex64": 9, "complex128": 12}
_VARINTS = {
    **dict.fromkeys(["int32", "uint8", "int16", "int8", "uint16"], 7),
    "int64": 10,
    "bool": 11,
    "uint32": 16,
    "uint64": 17,
    "float16": 13,
    "bfloat16": 13,
}
_STRINGS, _CONTENT = 8, 4


def read_v1(source: Mapped) -> Checkpoint:
    """Read a V1 checkpoint.

    Args:
        source: Its file.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: The file is damaged.
    """
    tensors, saved = {}, {}
    meta: Message | None = None
    for key, value in table_entries(source):
        message = parse(value, "saved slices")
        if key == b"":
            meta = message.message(1, "list of tensors")
        elif (one := message.message(2, "slice")) is not None:
            saved.setdefault(one.text(1), []).append(one)
    if meta is None:
        raise source.error("header", "the list of tensors under an empty name", "none")
    for described in meta.messages(1, "tensor"):
        name = described.text(1)
        if name in tensors:
            raise source.error(f"tensor {name!r}", "one description", "two")
        tensors[name] = _tensor(source, name, described, saved.get(name, []))
    return Checkpoint(source.path, "tf-v1", tensors, {}, entries_by_name(tensors))


def _tensor(source: Mapped, name: str, described: Message, saved: list[Message]) -> StoredTensor:
    shape, dtype, place = (
        shape_of(described.message(2)),
        dtype_name(described, 3),
        f"tensor {name!r}",
    )
    listed = [extents_of(one, shape) for one in described.messages(4, "slice")]
    parts: list[Part] = []
    for one in saved:
        found = one.message(2)
        extents = extents_of(found, shape) if found is not None else (Extent(0, None),) * len(shape)
        data = one.message(3, place)
        if data is None or (data.integer(1) and dtype_name(data, 1) != dtype):
            raise source.error(place, f"a slice of {dtype}", "another")
        piece = tuple(
            size if extent.length is None else extent.length
            for extent, size in zip(extents, shape, strict=True)
        )
        parts.append((extents, partial(_values, source, place, data, dtype, piece)))
    if sorted(map(str, listed)) != sorted(str(extents) for extents, _ in parts):
        raise source.error(place, f"its {len(listed)} slices", f"{len(parts)} stored")
    check_cover(source, place, shape, [extents for extents, _ in parts])
    if len(parts) == 1:
        return StoredTensor(name, dtype, shape, parts[0][1])
    return StoredTensor(name, dtype, shape, partial(assemble, source, place, shape, parts))


def _values(
    source: Mapped, place: str, data: Message, dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
    """The numbers of a `TensorProto`."""
    if dtype == STRING:
        return _strings(source, place, data, shape)
    if _CONTENT in data.fields:
        return decode(source, place, data.data(_CONTENT), dtype, shape)
    if dtype in _FIXED:
        part = "float32" if dtype in ("float32", "complex64") else "float64"
        return decode(source, place, data.numbers(_FIXED[dtype], part), dtype, shape)
    if dtype not in _VARINTS:
        raise source.error(place, "numbers or strings", f"a {dtype}")
    bits = data.integers(_VARINTS[dtype])
    wanted = byte_count(source, place, dtype, shape)
    stored = "uint16" if dtype in ("float16", "bfloat16") else dtype.replace("bool", "uint8")
    limits = np.iinfo(stored)
    if dtype == "uint64":
        bits = tuple(value & (1 << 64) - 1 for value in bits)
    if any(not limits.min <= value <= limits.max for value in bits):
        raise source.error(place, f"values of {dtype}", "a larger one")
    array = np.array(bits, dtype=stored)
    if array.nbytes != wanted:
        raise source.error(place, f"{wanted} bytes for {dtype} {shape}", f"{len(bits)} values")
    return decode(source, place, array.tobytes(), dtype, shape)


def _strings(source: Mapped, place: str, data: Message, shape: tuple[int, ...]) -> np.ndarray:
    found = data.fields.get(_STRINGS, [])
    if len(found) != byte_count(source, place, "uint8", shape):
        raise source.error(place, f"strings of shape {shape}", f"{len(found)} strings")
    array = np.empty(len(found), dtype=object)
    for number, value in enumerate(found):
        if isinstance(value, int):
            raise source.error(place, "strings", "a number")
        array[number] = bytes(value)
    return array.reshape(shape)

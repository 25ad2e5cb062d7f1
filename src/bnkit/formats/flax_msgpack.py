"""Flax's `to_bytes`: nested dictionaries in MessagePack, arrays as an extension type."""

from collections.abc import Iterator
from functools import partial
from math import prod
from typing import Any

import numpy as np

from bnkit.formats.by_name import entries_by_name
from bnkit.formats.checkpoint import Checkpoint, StoredTensor
from bnkit.formats.dtypes import MAX_RANK, SIZES, byte_count, decode
from bnkit.formats.mapped import Mapped
from bnkit.formats.msgpack_data import Extension, unpack

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"


def read_flax(source: Mapped) -> Checkpoint:
    """Read a file of `flax.serialization.to_bytes`: variables, a TrainState or an nnx state.

    Args:
        source: The file.

    Returns:
        The checkpoint; names are the keys joined by `/`. Python's numbers become scalars of
        64 bits; text and empty places are left in the metadata `others`.

    Raises:
        CheckpointError: The file is damaged or has no dictionary at its top.
    """
    document = unpack(source)
    if not isinstance(document, dict):
        raise source.error("document", "a dictionary", f"a {type(document).__name__}")
    tensors: dict[str, StoredTensor] = {}
    others: dict[str, Any] = {}
    for name, value in _leaves(source, document, ""):
        if name in tensors or name in others:
            raise source.error(f"tensor {name!r:.200}", "names that differ", "this one twice")
        if value is None or isinstance(value, str | memoryview):
            others[name] = value
        else:
            tensors[name] = _tensor(source, name, value)
    return Checkpoint(
        source.path, "flax-msgpack", tensors, {"others": others}, entries_by_name(tensors)
    )


def _leaves(source: Mapped, value: Any, name: str) -> Iterator[tuple[str, Any]]:
    source.named(name, "name of a tensor")
    if isinstance(value, dict) and _CHUNKED not in value:
        for key, inner in value.items():
            yield from _leaves(source, inner, f"{name}/{key}" if name else key)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(source, inner, f"{name}/{number}" if name else str(number))
    else:
        yield name, value


def _tensor(source: Mapped, name: str, value: Any) -> StoredTensor:
    place = f"tensor {name!r}"
    if isinstance(value, dict):
        return _chunked(source, name, value)
    if isinstance(value, Extension):
        return _extension(source, name, value)
    dtype = {bool: "bool", int: "int64", float: "float64"}[type(value)]
    if dtype == "int64" and not -(1 << 63) <= value < 1 << 63:
        dtype = "uint64"
    data = np.array(value, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()
    return StoredTensor(name, dtype, (), partial(decode, source, place, data, dtype, ()))


def _extension(source: Mapped, name: str, value: Extension) -> StoredTensor:
    place = f"tensor {name!r}"
    if value.code == _COMPLEX:
        parts = unpack(Mapped(source.path, value.data, source.part), place)
        if not _all(parts, float) or len(parts) != 2:
            raise source.error(place, "a real and an imaginary part", f"{parts!r:.80}")
        data = np.array(complex(*parts), dtype="<c16").tobytes()
        return StoredTensor(
            name, "complex128", (), partial(decode, source, place, data, "complex128", ())
        )
    if value.code not in (_NDARRAY, _SCALAR):
        raise source.error(place, "an array or a number", f"extension type {value.code}")
    parts = unpack(Mapped(source.path, value.data, source.part), place)
    if not isinstance(parts, list) or len(parts) != 3 or not _all(parts[0], int):
        raise source.error(place, "shape, dtype and bytes", f"{parts!r:.80}")
    shape, dtype, data = tuple(parts[0]), parts[1], parts[2]
    if isinstance(dtype, memoryview):
        dtype = source.text(dtype, place)
    if dtype not in SIZES or not isinstance(data, memoryview):
        raise source.error(place, f"bytes of a dtype of {', '.join(SIZES)}", f"{dtype!r:.80}")
    wanted = byte_count(source, place, dtype, shape)
    if wanted != len(data):
        raise source.error(place, f"{wanted} bytes for {dtype} {shape}", f"{len(data)}")
    return StoredTensor(name, dtype, shape, partial(decode, source, place, data, dtype, shape))


def _chunked(source: Mapped, name: str, value: dict[str, Any]) -> StoredTensor:
    """A large array, which Flax stores in flat pieces."""
    place = f"tensor {name!r}"
    sizes, chunks = _in_order(value.get("shape")), _in_order(value.get("chunks"))
    good = _all(sizes, int) and len(sizes) <= MAX_RANK and bool(chunks)
    if not good or not _all(chunks, Extension):
        raise source.error(place, "a shape and chunks", f"{value.keys()}")
    parts = [_extension(source, name, chunk) for chunk in chunks]
    shape, dtype = tuple(sizes), parts[0].dtype
    byte_count(source, place, dtype, shape)
    held = sum(prod(part.shape) for part in parts)
    if held != prod(shape) or any(part.dtype != dtype for part in parts):
        raise source.error(place, f"chunks of {prod(shape)} {dtype} in all", f"{held}")
    return StoredTensor(name, dtype, shape, partial(_joined, parts, shape))


def _joined(parts: list[StoredTensor], shape: tuple[int, ...]) -> np.ndarray:
    array = np.concatenate([part.load().reshape(-1) for part in parts]).reshape(shape)
    array.flags.writeable = False
    return array


def _in_order(value: Any) -> list[Any]:
    """Flax writes tuples as dictionaries from `0`, `1`, ..."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else []
    return [value[str(number)] for number in range(len(value)) if str(number) in value]


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)

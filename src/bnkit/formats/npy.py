"""NumPy's arrays: `.npy`, `.npz`, and the blocks one after another that Equinox writes.

Headers are matched against one pattern and never evaluated; arrays of Python objects, which
are pickles, are refused.
"""

import re
from functools import partial
from typing import Any

import numpy as np

from bnkit.formats.by_name import entries_by_name
from bnkit.formats.checkpoint import Checkpoint, StoredTensor
from bnkit.formats.dtypes import SIZES, byte_count, decode
from bnkit.formats.json_text import expect_object, parse_json
from bnkit.formats.mapped import Mapped
from bnkit.formats.zip_members import Member

NPY_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{2,16})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[0-9L, ]*)\),? ?\}\s*"
)
_MAX_HEADER = 10_000
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
_VOID = {"V2": "bfloat16"}  # how NumPy writes the dtype of ml_dtypes


def read_npy(source: Mapped) -> Checkpoint:
    """Read one array, or the leaves of an Equinox tree.

    Args:
        source: The file: one array, or several, perhaps after a line of JSON.

    Returns:
        The checkpoint; the names are `0`, `1`, ... because the file has none.

    Raises:
        CheckpointError: A block is damaged, or holds Python objects.
    """
    metadata: dict[str, Any] = {}
    at = 0
    if bytes(source.data[:1]) == b"{":
        at = bytes(source.data[:_MAX_HEADER]).find(b"\n") + 1
        line = parse_json(source, source.data[:at], "first line")
        metadata["header"] = expect_object(source, line, "first line")
    tensors: dict[str, StoredTensor] = {}
    while at < len(source):
        name = str(len(tensors))
        tensor, at = _block(source, at, name)
        if tensor.dtype == "object":
            error = _pickled(source, f"block {name}")
            raise error
        tensors[name] = tensor
    if not tensors:
        raise source.error("beginning", "an array of NumPy", "none")
    kind = "npy" if len(tensors) == 1 and not metadata else "equinox"
    return Checkpoint(source.path, kind, tensors, metadata)


def read_npz(source: Mapped, members: dict[str, Member]) -> Checkpoint:
    """Read an archive of arrays, as Haiku's users write it.

    Args:
        source: The file.
        members: Of the archive; all end in `.npy`.

    Returns:
        The checkpoint. An array of Python objects is listed with the dtype `object`; asking for
        it is refused.
    """
    tensors = {}
    for stored, member in members.items():
        name = stored.removesuffix(".npy")
        head = Mapped(source.path, member.start(_MAX_HEADER + 12), f"member {stored!r}")
        dtype, shape, *_ = _header(head, 0, f"array {name!r}")
        load = partial(_load_member, source, member, name)
        tensors[name] = StoredTensor(name, dtype, shape, load)
    return Checkpoint(source.path, "npz", tensors, {}, entries_by_name(tensors))


def _load_member(source: Mapped, member: Member, name: str) -> np.ndarray:
    content = Mapped(source.path, member.read(), f"member {member.name!r}")
    tensor, end = _block(content, 0, name)
    if end != len(content):
        raise content.error(f"array {name!r}", f"{end} bytes", f"{len(content)}")
    return tensor.load()


def _block(source: Mapped, at: int, name: str) -> tuple[StoredTensor, int]:
    place = f"array {name!r}"
    dtype, shape, descr, fortran, start = _header(source, at, place)
    if dtype == "object":
        return StoredTensor(name, dtype, shape, partial(_refuse, source, place)), len(source)
    if dtype == "string":
        size = np.dtype(descr).itemsize * byte_count(source, place, "uint8", shape)
    else:
        size = byte_count(source, place, dtype, shape)
    data = source.take(start, size, place)
    load = partial(_decode, source, place, data, (dtype, shape, descr, fortran))
    return StoredTensor(name, dtype, shape, load), start + size


def _header(source: Mapped, at: int, place: str) -> tuple[str, tuple[int, ...], str, bool, int]:
    """Dtype, shape, NumPy's description, whether columns come first, and where the data begins."""
    magic = source.take(at, 8, place)
    if bytes(magic[:6]) != NPY_MAGIC or magic[6] not in _LENGTH_BYTES:
        raise source.error(f"{place} at byte {at}", "an array of NumPy", f"{bytes(magic)!r}")
    width = _LENGTH_BYTES[magic[6]]
    length = source.number(at + 8, width, place)
    if length > _MAX_HEADER:
        raise source.error(place, f"a header of at most {_MAX_HEADER} bytes", f"{length}")
    text = source.text(source.take(at + 8 + width, length, place), place)
    match = _HEADER.fullmatch(text)
    if not match:
        raise source.error(place, "the header of an array of numbers", f"{text[:120]!r}")
    sizes = [size.strip(" L") for size in match["shape"].split(",")]
    if any(len(size) > 18 or not (size or position) for position, size in enumerate(sizes[1:], 1)):
        raise source.error(place, "a shape", f"({match['shape'][:120]})")
    shape = tuple(int(size) for size in sizes if size)
    dtype = _dtype_name(source, place, match["descr"])
    return dtype, shape, match["descr"], match["fortran"] == "True", at + 8 + width + length


def _dtype_name(source: Mapped, place: str, descr: str) -> str:
    if descr[1:] in _VOID:
        return _VOID[descr[1:]]
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError) as error:
        raise source.error(place, "a dtype of NumPy", repr(descr)) from error
    if dtype.hasobject:
        return "object"
    if dtype.kind in "SU":
        return "string"
    if dtype.name not in SIZES:
        raise source.error(place, f"a dtype of {', '.join(SIZES)}", repr(descr))
    return dtype.name


def _decode(
    source: Mapped, place: str, data: memoryview, kind: tuple[str, tuple[int, ...], str, bool]
) -> np.ndarray:
    dtype, shape, descr, fortran = kind
    if dtype == "string":
        texts = np.frombuffer(data, dtype=np.dtype(descr)) if data else np.empty(0, descr)
        array = np.empty(texts.size, dtype=object)
        array[:] = [one if isinstance(one, bytes) else one.encode() for one in texts.tolist()]
    elif descr.startswith(">") and SIZES[dtype] > 1:
        array = np.frombuffer(data, dtype=np.dtype(descr)).astype(np.dtype(dtype))
    else:
        array = decode(source, place, data, dtype, (len(data) // SIZES[dtype],))
    array = array.reshape(shape, order="F" if fortran else "C")
    array.flags.writeable = False
    return array


def _refuse(source: Mapped, place: str) -> np.ndarray:
    raise _pickled(source, place)


def _pickled(source: Mapped, place: str) -> Exception:
    return source.error(place, "numbers", "Python objects, a pickle that could run code")

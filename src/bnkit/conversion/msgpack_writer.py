"""Flax's MessagePack files, written: a copy of a file with its arrays replaced."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bnkit.core import InputError
from bnkit.formats import Checkpoint
from bnkit.formats.mapped import map_file
from bnkit.formats.msgpack_data import Extension, unpack

_NDARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
_LARGEST = 2**30  # bytes; beyond, Flax stores an array in pieces


def write_flax(file: Checkpoint, tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a file of `flax.serialization.to_bytes` anew.

    Args:
        file: The pattern, of the format `flax-msgpack`.
        tensors: Arrays that replace those of the same name.
        path: The new file.

    Raises:
        InputError: An array is stored in pieces, or as bfloat16.
    """
    document = unpack(map_file(file.path))
    with path.open("wb") as out:
        out.write(pack(_replaced(document, "", tensors, file)))


def pack(value: Any) -> bytes:
    """One value as MessagePack.

    Args:
        value: Dictionaries, lists, numbers, text, None, bytes, `Extension` or arrays.

    Returns:
        Its bytes.

    Raises:
        InputError: A value of another type.

    Example:
        >>> pack({"a": [1, -2, None]}).hex()
        '81a1619301fec0'
    """
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return _sized(len(data), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + data
    if isinstance(value, bytes | memoryview):
        return _sized(len(value), None, (0xC4, 0xC5, 0xC6)) + bytes(value)
    if isinstance(value, list | tuple):
        return _sized(len(value), (0x90, 16), (None, 0xDC, 0xDD)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        inner = b"".join(pack(k) + pack(v) for k, v in value.items())
        return _sized(len(value), (0x80, 16), (None, 0xDE, 0xDF)) + inner
    if isinstance(value, np.ndarray):
        parts = [list(value.shape), value.dtype.name, value.tobytes()]
        value = Extension(_NDARRAY, memoryview(pack(parts)))
    if isinstance(value, Extension):
        head = _sized(len(value.data), None, (0xC7, 0xC8, 0xC9))
        return head + bytes([value.code]) + bytes(value.data)
    msg = f"MessagePack: expected plain values and arrays, got {type(value).__name__}."
    raise InputError(msg)


def _replaced(value: Any, name: str, tensors: Mapping[str, np.ndarray], file: Checkpoint) -> Any:
    if name in tensors:
        return _array(value, name, tensors[name], file)
    if isinstance(value, dict) and _CHUNKED not in value:
        return {k: _replaced(v, f"{name}/{k}".lstrip("/"), tensors, file) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, f"{name}/{k}".lstrip("/"), tensors, file) for k, v in enumerate(value)]
    return value


def _array(old: Any, name: str, array: np.ndarray, file: Checkpoint) -> Any:
    if isinstance(old, int | float):
        return type(old)(array)
    if isinstance(old, dict) or array.nbytes > _LARGEST or file.dtypes[name] != array.dtype.name:
        msg = (
            f"{str(file.path)!r}: tensor {name!r}: expected one piece of a dtype of NumPy, got "
            f"{file.dtypes[name]}{' in pieces' if isinstance(old, dict) else ''}."
        )
        raise InputError(msg)
    return array


def _integer(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes([value])
    if -32 <= value < 0:
        return struct.pack("b", value)
    for code, layout in ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q"), (0xCF, ">Q")):
        try:
            return bytes([code]) + struct.pack(layout, value)
        except struct.error:
            continue
    msg = f"MessagePack: expected an integer of at most 64 bits, got {value}."
    raise InputError(msg)


def _sized(size: int, small: tuple[int, int] | None, codes: tuple[int | None, int, int]) -> bytes:
    if small is not None and size < small[1]:
        return bytes([small[0] | size])
    if codes[0] is not None and size < 1 << 8:
        return bytes([codes[0], size])
    if size < 1 << 16:
        return bytes([codes[1]]) + size.to_bytes(2, "big")
    return bytes([codes[2]]) + size.to_bytes(4, "big")

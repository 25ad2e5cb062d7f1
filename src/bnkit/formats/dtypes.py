"""Stored numbers as arrays: byte counts that must agree, and dtypes that NumPy lacks."""

from functools import cache
from math import prod

import numpy as np

from bnkit.formats.mapped import Mapped

SIZES = {
    "bool": 1,
    **{f"{kind}{bits}": bits // 8 for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
"""Bytes of one value, by the names that `StoredTensor.dtype` uses."""

MAX_RANK = 32
_MAX_ELEMENTS = 1 << 60


def byte_count(source: Mapped, place: str, dtype: str, shape: tuple[int, ...]) -> int:
    """How many bytes a tensor takes.

    Args:
        source: The file, for messages.
        place: Which tensor, for messages.
        dtype: A key of `SIZES`.
        shape: Its dimensions.

    Returns:
        The number of bytes.

    Raises:
        CheckpointError: The dtype is unknown, or no array can have these dimensions.
    """
    if dtype not in SIZES:
        raise source.error(place, f"a dtype of {', '.join(SIZES)}", repr(dtype))
    if len(shape) > MAX_RANK or any(type(n) is not int or n < 0 for n in shape):
        shown = f"{len(shape)} dimensions" if len(shape) > MAX_RANK else f"shape {shape}"
        raise source.error(place, f"up to {MAX_RANK} dimensions of at least 0", shown)
    if prod(n for n in shape if n) > _MAX_ELEMENTS:
        raise source.error(place, "a shape that fits into memory", f"shape {shape}")
    return prod(shape) * SIZES[dtype]


def decode(
    source: Mapped, place: str, data: memoryview | bytes, dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Show stored little-endian values as an array, without a copy where NumPy has the dtype.

    Args:
        source: The file, for messages.
        place: Which tensor, for messages.
        data: Its bytes.
        dtype: A key of `SIZES`.
        shape: Its dimensions.

    Returns:
        Read-only; bfloat16 and float8 widened to float32, without loss.

    Raises:
        CheckpointError: Number of bytes and shape disagree.
    """
    wanted = byte_count(source, place, dtype, shape)
    if len(data) != wanted:
        raise source.error(place, f"{wanted} bytes for {dtype} {shape}", f"{len(data)} bytes")
    if dtype == "bfloat16":
        bits = np.frombuffer(data, dtype="<u2").astype(np.uint32)
        array = (bits << np.uint32(16)).view(np.float32)
    elif dtype.startswith("float8"):
        array = _float8_values(dtype)[np.frombuffer(data, dtype=np.uint8)]
    elif dtype == "bool":
        array = np.frombuffer(data, dtype=np.uint8) != 0
    else:
        array = np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<"))
    array = array.astype(array.dtype.newbyteorder("="), copy=False).reshape(shape)
    array.flags.writeable = False
    return array


@cache
def _float8_values(dtype: str) -> np.ndarray:
    """The 256 values of a float8 (OCP 8-bit floating point, revision 1.0), as float32."""
    finite_only = dtype == "float8_e4m3fn"
    mantissa_bits, bias = (3, 7) if finite_only else (2, 15)
    codes = np.arange(128)
    exponent, fraction = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    part = fraction / (1 << mantissa_bits)
    values = np.where(
        exponent > 0,
        np.ldexp(1 + part, exponent - bias),
        np.ldexp(part, 1 - bias),
    )
    if finite_only:
        values[127] = np.nan
    else:
        values[codes >= 0x7C] = np.nan
        values[0x7C] = np.inf
    return np.concatenate([values, -values]).astype(np.float32)

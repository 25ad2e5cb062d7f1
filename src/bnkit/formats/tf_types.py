"""TensorFlow's messages about dtypes, shapes and slices."""

from dataclasses import dataclass

from bnkit.formats.dtypes import MAX_RANK
from bnkit.formats.wire import Message

STRING = "string"
_DTYPES = {
    **dict(enumerate(["float32", "float64", "int32", "uint8", "int16", "int8", STRING], 1)),
    **dict(enumerate(["complex64", "int64", "bool", "int8", "uint8", "int32", "bfloat16"], 8)),
    **dict(enumerate(["int16", "uint16", "uint16", "complex128", "float16"], 15)),
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
}
_UNREADABLE = {20: "resource", 21: "variant", 29: "int4", 30: "uint4"}


def dtype_name(message: Message, number: int) -> str:
    """Name the dtype of a tensor; quantized ones are named by how they are stored.

    Args:
        message: With a field of `tensorflow.DataType`.
        number: Of the field.

    Returns:
        A name of `StoredTensor.dtype`, or that of a dtype which no array can hold.

    Raises:
        CheckpointError: TensorFlow has no such dtype.
    """
    code = message.integer(number)
    found = _DTYPES.get(code) or _UNREADABLE.get(code)
    if found is None:
        raise message.source.error(message.place, "a dtype of TensorFlow", f"number {code}")
    return found


def shape_of(message: Message | None) -> tuple[int, ...]:
    """Read a `TensorShapeProto`.

    Args:
        message: None stands for a scalar.

    Returns:
        Its dimensions.

    Raises:
        CheckpointError: They are not known, or too many.
    """
    if message is None:
        return ()
    shape = tuple(dim.integer(1) for dim in message.messages(2))
    if message.integer(3) or len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise message.source.error(message.place, "a shape that is known", f"{shape[:MAX_RANK]}")
    return shape


@dataclass(frozen=True)
class Extent:
    """Part of one dimension.

    Attributes:
        start: First index.
        length: Number of indices; None for all.
    """

    start: int
    length: int | None

    def bounds(self, size: int) -> slice:
        """As a slice of a dimension of `size`.

        Args:
            size: Of the dimension.

        Returns:
            The slice.
        """
        return slice(self.start, size if self.length is None else self.start + self.length)


def extents_of(message: Message, shape: tuple[int, ...]) -> tuple[Extent, ...]:
    """Read a `TensorSliceProto`.

    Args:
        message: The slice.
        shape: Of the whole tensor.

    Returns:
        One extent a dimension.

    Raises:
        CheckpointError: The slice is not one of this shape.
    """
    found = tuple(
        Extent(extent.integer(1), extent.integer(2) if 2 in extent.fields else None)
        for extent in message.messages(1)
    )
    inside = len(found) == len(shape) and all(
        e == Extent(0, None)
        or (e.length is not None and e.length > 0 and 0 <= e.start <= size - e.length)
        for e, size in zip(found, shape, strict=True)
    )
    if not inside:
        raise message.source.error(message.place, f"a slice of shape {shape}", f"{found}"[:200])
    return found


def slice_key(name: str, extents: tuple[Extent, ...]) -> bytes:
    """Name a slice as the tables of checkpoints do (TensorFlow's `OrderedCode`).

    Args:
        name: Of the whole tensor.
        extents: Of the slice.

    Returns:
        The key of its entry.
    """
    text = name.encode().replace(b"\xff", b"\xff\x00").replace(b"\x00", b"\x00\xff")
    key = _unsigned(0) + text + b"\x00\x01" + _unsigned(len(extents))
    for extent in extents:
        key += _signed(extent.start) + _signed(-1 if extent.length is None else extent.length)
    return key


def _unsigned(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    """As many leading ones as bytes, a zero, then the number; negative ones are inverted."""
    size = next(n for n in range(1, 11) if -(1 << (7 * n - 1)) <= value < 1 << (7 * n - 1))
    bits = value & ((1 << (8 * size)) - 1)
    header = ((1 << size) - 1) << (7 * size)
    return (bits ^ header).to_bytes(size, "big")

"""Protocol Buffers without their schemas: the wire format, as far as tensor files need it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bnkit.formats.mapped import Mapped

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_FIELD = (1 << 29) - 1
_MAX_FIELDS = 1 << 20  # of one message; what is packed into a field does not count

Value = int | memoryview


def varint(source: Mapped, at: int, place: str) -> tuple[int, int]:
    """Read an unsigned integer of 7 bits a byte.

    Args:
        source: The bytes.
        at: Where it begins.
        place: What is read, for the message.

    Returns:
        The number below 2**64, and where the next thing begins.

    Raises:
        CheckpointError: It does not end within 10 bytes or within the file, or is too large.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(source.data):
            raise source.error(place, "a varint", f"the end of the data at byte {at}")
        byte = source.data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise source.error(place, "a varint below 2**64", f"a longer one before byte {at}")


def signed(value: int) -> int:
    """Read a varint as the two's complement int64 that it is in `int32` and `int64` fields.

    Args:
        value: Below 2**64.

    Returns:
        The signed number.
    """
    return value - (1 << 64) if value >> 63 else value


def _fields(source: Mapped, place: str) -> Iterator[tuple[int, Value]]:
    at = 0
    while at < len(source.data):
        key, at = varint(source, at, place)
        number, kind = key >> 3, key & 7
        if not 1 <= number <= _MAX_FIELD:
            raise source.error(place, "a field number of a message", str(number))
        if kind == _VARINT:
            value, at = varint(source, at, place)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = varint(source, at, place)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise source.error(place, "a wire type of Protocol Buffers", f"{kind} at byte {at}")
        yield number, source.take(at, size, f"{place}, field {number}")
        at += size


@dataclass(frozen=True)
class Message:
    """The fields of one message by number; absent ones have the default of proto3.

    Attributes:
        source: Its bytes.
        place: What it is, for messages of errors.
        fields: Values in their order: integers, or bytes for everything else.
    """

    source: Mapped
    place: str
    fields: dict[int, list[Value]] = field(repr=False)

    def integer(self, number: int, default: int = 0) -> int:
        """Read the last value of an integer field.

        Args:
            number: Of the field.
            default: Where it is absent.

        Returns:
            The number, signed.

        Raises:
            CheckpointError: The field holds something else.
        """
        value = self.fields.get(number, [default])[-1]
        if not isinstance(value, int):
            raise self._unlike(number, "an integer")
        return signed(value)

    def fixed32(self, number: int) -> int:
        """Read the last value of a `fixed32` field.

        Args:
            number: Of the field.

        Returns:
            The number; 0 where it is absent.
        """
        values = self.fields.get(number)
        return int.from_bytes(self._sized(number, values[-1], 4), "little") if values else 0

    def float32(self, number: int) -> float | None:
        """Read the last value of a `float` field.

        Args:
            number: Of the field.

        Returns:
            The number; None where it is absent.
        """
        values = self.fields.get(number)
        if not values:
            return None
        return float(np.frombuffer(self._sized(number, values[-1], 4), dtype="<f4")[0])

    def data(self, number: int) -> memoryview:
        """Read the last value of a field of bytes.

        Args:
            number: Of the field.

        Returns:
            The bytes; none where it is absent.
        """
        values = self.fields.get(number)
        return self._bytes(number, values[-1]) if values else memoryview(b"")

    def text(self, number: int) -> str:
        """Read the last value of a field of text.

        Args:
            number: Of the field.

        Returns:
            The text; empty where it is absent.
        """
        return self.source.text(self.data(number), f"{self.place}, field {number}")

    def texts(self, number: int) -> list[str]:
        """Read all values of a field of text.

        Args:
            number: Of the field.

        Returns:
            The texts.
        """
        place = f"{self.place}, field {number}"
        return [
            self.source.text(self._bytes(number, v), place) for v in self.fields.get(number, [])
        ]

    def integers(self, number: int) -> tuple[int, ...]:
        """Read all values of a repeated integer field, packed or not.

        Args:
            number: Of the field.

        Returns:
            The numbers, signed.
        """
        found: list[int] = []
        for value in self.fields.get(number, []):
            if isinstance(value, int):
                found.append(signed(value))
                continue
            packed, at = Mapped(self.source.path, value, self.source.part), 0
            while at < len(value):
                one, at = varint(packed, at, f"{self.place}, field {number}")
                found.append(signed(one))
        return tuple(found)

    def numbers(self, number: int, dtype: str) -> memoryview:
        """Gather a repeated field of fixed-size numbers, packed or not.

        Args:
            number: Of the field.
            dtype: NumPy's name of one number, of 4 or 8 bytes.

        Returns:
            The bytes of all numbers, one after another; a view where they are packed.

        Raises:
            CheckpointError: The bytes are no whole number of them.
        """
        values = [self._bytes(number, value) for value in self.fields.get(number, [])]
        found = values[0] if len(values) == 1 else memoryview(b"".join(values))
        size = np.dtype(dtype).itemsize
        if len(found) % size:
            raise self._unlike(number, f"numbers of {size} bytes each")
        return found

    def message(self, number: int, place: str = "") -> "Message | None":
        """Read the last value of a field that is a message.

        Args:
            number: Of the field.
            place: What it is, for messages of errors.

        Returns:
            The message; None where it is absent.
        """
        values = self.fields.get(number)
        return self._parsed(number, values[-1], place) if values else None

    def messages(self, number: int, place: str = "") -> "list[Message]":
        """Read all values of a field that is a repeated message.

        Args:
            number: Of the field.
            place: What they are, for messages of errors.

        Returns:
            The messages.
        """
        return [self._parsed(number, value, place) for value in self.fields.get(number, [])]

    def _parsed(self, number: int, value: Value, place: str) -> "Message":
        inner = Mapped(self.source.path, self._bytes(number, value), self.source.part)
        return parse(inner, place or f"{self.place}, field {number}")

    def _bytes(self, number: int, value: Value) -> memoryview:
        if isinstance(value, int):
            raise self._unlike(number, "bytes")
        return value

    def _sized(self, number: int, value: Value, size: int) -> memoryview:
        data = self._bytes(number, value)
        if len(data) != size:
            raise self._unlike(number, f"{size} bytes")
        return data

    def _unlike(self, number: int, expected: str) -> Exception:
        return self.source.error(f"{self.place}, field {number}", expected, "another type")


def parse(source: Mapped, place: str) -> Message:
    """Split a message into its fields.

    Args:
        source: Its bytes.
        place: What it is, for messages of errors.

    Returns:
        The message; nested ones are parsed when they are asked for.

    Raises:
        CheckpointError: It is damaged, or has more fields than any file of tensors.
    """
    fields: dict[int, list[Value]] = {}
    for count, (number, value) in enumerate(_fields(source, place)):
        if count == _MAX_FIELDS:
            raise source.error(place, f"at most {_MAX_FIELDS} fields", "more")
        fields.setdefault(number, []).append(value)
    return Message(source, place, fields)

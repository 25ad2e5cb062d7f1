"""The objects of an HDF5 file: superblock, object headers and their messages.

The format is "HDF5 File Format Specification 3.0"; the names of sections there are given below.
The C library stops answering on some damaged files, so Keras' files are read here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bnkit.formats.mapped import Mapped

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
UNDEFINED = (1 << 64) - 1
_MAX_MESSAGES = 1 << 16
_CONTINUATION, _SHARED = 0x10, 2


class Header(NamedTuple):
    """A message of an object header.

    Attributes:
        kind: Its type.
        data: Its content.
    """

    kind: int
    data: Mapped


@dataclass
class Cursor:
    """Numbers of a structure, one after another.

    Attributes:
        source: Its bytes.
        at: Where the next number is.
        place: What is read, for messages of errors.
    """

    source: Mapped
    at: int
    place: str

    def number(self, size: int) -> int:
        """Read an unsigned number.

        Args:
            size: In bytes.

        Returns:
            The number.
        """
        self.at += size
        return self.source.number(self.at - size, size, self.place)

    def take(self, size: int) -> memoryview:
        """Read bytes.

        Args:
            size: How many.

        Returns:
            A view of them.
        """
        self.at += size
        return self.source.take(self.at - size, size, self.place)

    def signature(self, expected: bytes) -> None:
        """Insist on the four letters that a structure begins with.

        Args:
            expected: The letters.

        Raises:
            CheckpointError: Others are there.
        """
        found = bytes(self.take(len(expected)))
        if found != expected:
            place = f"{self.place} at byte {self.at - len(expected)}"
            raise self.source.error(place, f"the signature {expected.decode()}", repr(found))


def root_address(source: Mapped) -> int:
    """Read the superblock (section II.A).

    Args:
        source: The file.

    Returns:
        The address of the object header of the root group.

    Raises:
        CheckpointError: It has a version, an offset or a size of numbers that Keras never writes.
    """
    cursor = Cursor(source, len(HDF5_MAGIC), "superblock")
    version = cursor.number(1)
    if version in (0, 1):
        cursor.at = 13
        sizes = cursor.number(1), cursor.number(1)
        cursor.at = 24 if version == 0 else 28
        base = cursor.number(8)
        cursor.at += 3 * 8 + 8  # free space, end, driver; then the name of the root group
    elif version in (2, 3):
        sizes = cursor.number(1), cursor.number(1)
        cursor.at += 1
        base = cursor.number(8)
        cursor.at += 2 * 8  # extension, end
    else:
        raise source.error("superblock", "version 0 to 3", str(version))
    if sizes != (8, 8) or base:
        raise source.error("superblock", "8-byte addresses from byte 0", f"{sizes} from {base}")
    return cursor.number(8)


def messages(source: Mapped, address: int, place: str) -> list[Header]:
    """Read an object header with its continuations (section IV.A.1).

    Args:
        source: The file.
        address: Of the header.
        place: Which object, for messages of errors.

    Returns:
        Its messages.

    Raises:
        CheckpointError: It is damaged.
    """
    old = bytes(source.take(address, 4, place)) != b"OHDR"
    if old and source.number(address, 1, place) != 1:
        raise source.error(f"{place} at byte {address}", "the header of an object", "another")
    first = (
        _first_chunk(source, address, place) if old else _first_new_chunk(source, address, place)
    )
    waiting, seen, found = [first], {first[0]}, []
    while waiting:
        start, end, flags = waiting.pop(0)
        for kind, data in _chunk(source, (start, end), flags, place):
            found.append(Header(kind, data))
            if len(found) > _MAX_MESSAGES:
                raise source.error(place, f"at most {_MAX_MESSAGES} messages", "more")
            if kind == _CONTINUATION:
                cursor = Cursor(data, 0, place)
                start, size = cursor.number(8), cursor.number(8)
                if flags is not None:
                    Cursor(source, start, place).signature(b"OCHK")
                    start, size = start + 4, size - 8  # signature and checksum
                if start in seen:
                    raise source.error(place, "headers without a circle", f"byte {start} again")
                seen.add(start)
                source.take(start, size, place)
                waiting.append((start, start + size, flags))
    return found


Chunk = tuple[int, int, int | None]  # first byte, end, flags of a new header


def _first_chunk(source: Mapped, address: int, place: str) -> Chunk:
    size = source.number(address + 8, 4, place)
    source.take(address + 16, size, place)
    return address + 16, address + 16 + size, None


def _first_new_chunk(source: Mapped, address: int, place: str) -> Chunk:
    cursor = Cursor(source, address + 4, place)
    version, flags = cursor.number(1), cursor.number(1)
    if version != 2:
        raise source.error(place, "version 2 of the header of an object", str(version))
    cursor.at += (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    size = cursor.number(1 << (flags & 3))
    source.take(cursor.at, size, place)
    return cursor.at, cursor.at + size, flags


def _chunk(
    source: Mapped, span: tuple[int, int], flags: int | None, place: str
) -> Iterator[tuple[int, Mapped]]:
    at, end = span
    head = 8 if flags is None else 6 if flags & 4 else 4
    while at + head <= end:
        cursor = Cursor(source, at, place)
        kind, size = cursor.number(2 if flags is None else 1), cursor.number(2)
        shared = cursor.number(1) & _SHARED
        at += head + size
        if at > end:
            raise source.error(place, "messages inside of their header", "a longer one")
        if shared and kind in (1, 3, 8):
            raise source.error(place, "a description of its own", "a shared one")
        yield kind, Mapped(source.path, source.take(at - size, size, place), source.part)

"""Zip archives whose members are what they say: no overlaps, no bombs, every CRC-32 compared."""

import struct
import zipfile
import zlib
from dataclasses import dataclass, field

from bnkit.formats.mapped import Mapped

ZIP_MAGIC = b"PK\x03\x04"
_STORED, _DEFLATED = 0, 8
_LOCAL_HEADER = 30
_ENCRYPTED = 1
_MAX_MEMBERS = 200_000
# Deflate reaches 1032 on zeros. Weights do not come near 100; small members may be anything.
_MAX_RATIO, _SMALL = 100, 1 << 24


@dataclass(frozen=True)
class Member:
    """A file inside an archive.

    Attributes:
        source: The archive.
        name: Of the member.
        size: Bytes of its content.
        crc: Their CRC-32.
        stored: The bytes in the archive.
        compressed: Whether those are deflated.
    """

    source: Mapped
    name: str
    size: int
    crc: int
    stored: memoryview = field(repr=False)
    compressed: bool = False

    def read(self) -> memoryview:
        """Read all of it.

        Returns:
            Its content: of a member that is not compressed a view of the mapped file.

        Raises:
            CheckpointError: It is damaged.
        """
        content = memoryview(self._inflated(self.size)) if self.compressed else self.stored
        if len(content) != self.size or zlib.crc32(content) != self.crc:
            raise self.source.error(
                f"member {self.name!r}",
                f"{self.size} bytes with the CRC-32 of the archive",
                "others",
            )
        return content

    def start(self, size: int) -> memoryview:
        """Read its beginning, unchecked.

        Args:
            size: Bytes at most.

        Returns:
            The beginning of its content.
        """
        return memoryview(self._inflated(size)) if self.compressed else self.stored[:size]

    def _inflated(self, size: int) -> bytes:
        machine = zlib.decompressobj(-15)
        try:
            return machine.decompress(self.stored, max(min(size, self.size), 1))
        except zlib.error as error:
            place = f"member {self.name!r}"
            raise self.source.error(place, "deflated content", str(error)) from error


def zip_members(source: Mapped) -> dict[str, Member]:
    """List an archive.

    Args:
        source: Its file.

    Returns:
        Members by name, in the order of their bytes; folders are left out.

    Raises:
        CheckpointError: The archive is damaged, or members overlap, are encrypted, are
            compressed beyond belief, or have one name.
    """
    found: dict[str, Member] = {}
    end = 0
    for info in sorted(_listed(source), key=lambda one: one.header_offset):
        place = f"member {info.filename!r}"
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (_STORED, _DEFLATED):
            raise source.error(place, "content stored or deflated", "another, or encrypted")
        start = _content_start(source, info, place)
        stored = source.take(start, info.compress_size, place)
        if info.header_offset < end:
            raise source.error(place, "members that do not overlap", f"byte {info.header_offset}")
        if info.file_size > max(_MAX_RATIO * info.compress_size, _SMALL):
            got = f"{info.file_size} bytes from {info.compress_size}"
            raise source.error(place, f"at most {_MAX_RATIO} times the compressed size", got)
        if info.filename in found:
            raise source.error(place, "names that differ", "this one twice")
        end = start + info.compress_size
        if not info.is_dir():
            deflated = info.compress_type == _DEFLATED
            found[info.filename] = Member(
                source, info.filename, info.file_size, info.CRC, stored, deflated
            )
    return found


def _listed(source: Mapped) -> list[zipfile.ZipInfo]:
    try:
        with source.path.open("rb") as file, zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, EOFError) as error:
        raise source.error("list of members", "a zip archive", f"another ({error})") from error
    except (NotImplementedError, RuntimeError, IndexError, OverflowError) as error:
        raise source.error("list of members", "a plain zip archive", f"{error}") from error
    if len(found) > _MAX_MEMBERS:
        raise source.error("list of members", f"at most {_MAX_MEMBERS}", f"{len(found)}")
    return found


def _content_start(source: Mapped, info: zipfile.ZipInfo, place: str) -> int:
    header = source.take(info.header_offset, _LOCAL_HEADER, place)
    if bytes(header[:4]) != ZIP_MAGIC:
        raise source.error(place, "the header of a member", f"{bytes(header[:4])!r}")
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + _LOCAL_HEADER + name + extra

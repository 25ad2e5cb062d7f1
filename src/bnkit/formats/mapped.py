"""Files as read-only memory, every access inside their bounds."""

import mmap
import stat
from dataclasses import dataclass, field
from pathlib import Path

from bnkit.core.errors import CheckpointError

_LONGEST_NAME = 4096


@dataclass(frozen=True)
class Mapped:
    """The bytes of a file, or of a part of it.

    The file must not be shortened while arrays of it are in use: the operating system stops a
    process that reads mapped memory behind the end of its file.

    Attributes:
        path: The file, for messages.
        data: Its bytes, read-only.
        part: Which part of the file this is, for messages; empty for all of it.
    """

    path: Path
    data: memoryview = field(repr=False)
    part: str = ""

    def __len__(self) -> int:
        return len(self.data)

    def error(self, place: str, expected: str, got: str) -> CheckpointError:
        """Build the error of this file: where, what was expected, what was got, what to do.

        Args:
            place: Where in the file.
            expected: What should be there.
            got: What is there.

        Returns:
            The error, to be raised.
        """
        inside = ", ".join(text for text in (self.part, place) if text)
        return CheckpointError(
            f"{str(self.path)!r}: {inside}: expected {expected}, got {got}. "
            "The file is damaged, incomplete or not what it seems; get it anew."
        )

    def take(self, start: int, length: int, place: str) -> memoryview:
        """Slice, if all of it is inside the file.

        Args:
            start: First byte.
            length: Number of bytes.
            place: What is read, for the message.

        Returns:
            A view of exactly `length` bytes.

        Raises:
            CheckpointError: It begins or ends outside.
        """
        if start < 0 or length < 0 or start + length > len(self.data):
            raise self.error(
                place,
                f"bytes {start} to {start + length} of {len(self.data)}",
                "an offset or length outside of the file",
            )
        return self.data[start : start + length]

    def number(self, start: int, length: int, place: str) -> int:
        """Read an unsigned little-endian integer.

        Args:
            start: First byte.
            length: Its size in bytes.
            place: What is read, for the message.

        Returns:
            The number.
        """
        return int.from_bytes(self.take(start, length, place), "little")

    def text(self, data: memoryview | bytes, place: str) -> str:
        """Decode UTF-8.

        Args:
            data: Bytes.
            place: What they are, for the message.

        Returns:
            The text.

        Raises:
            CheckpointError: They are not UTF-8.
        """
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as error:
            raise self.error(place, "text in UTF-8", f"the bytes {bytes(data[:12])!r}") from error

    def named(self, name: str, place: str) -> str:
        """Insist on a name of ordinary length: names are joined, and long ones multiply.

        Args:
            name: Of a tensor, or the beginning of one.
            place: What it names, for the message.

        Returns:
            `name`.

        Raises:
            CheckpointError: It is longer than 4096 characters.
        """
        if len(name) > _LONGEST_NAME:
            raise self.error(place, f"names of at most {_LONGEST_NAME} characters", f"{len(name)}")
        return name


def map_file(path: Path) -> Mapped:
    """Map a regular file into memory.

    Args:
        path: The file; a symbolic link is followed.

    Returns:
        Its bytes; pages are read when they are touched.

    Raises:
        CheckpointError: It is not there, not a regular file, or not readable.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
            msg = f"{str(path)!r}: expected a file of tensors, got {kind}."
            raise CheckpointError(msg)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"{str(path)!r}: expected a file of tensors, got: {reason}."
        raise CheckpointError(msg) from error
    return Mapped(path, memoryview(data))


def beside(anchor: Path, name: str) -> Path:
    """Find a further file of a checkpoint, next to its first one and nowhere else.

    A symbolic link may lead to another place in the same folder, or into the folder that `anchor`
    itself is a link to (download caches keep files so).

    Args:
        anchor: The first file.
        name: Relative path of the other, as a file may have chosen it.

    Returns:
        Its path.

    Raises:
        CheckpointError: It leads out of the folder, or is not there.
    """
    here = anchor.parent
    expected = f"{str(anchor)!r}: expected its further file {name[:200]!r} in the folder"
    if not name or "\0" in name or "\\" in name or Path(name).is_absolute():
        msg = f"{expected}, got a path that leads out of it. The file was not read."
        raise CheckpointError(msg)
    try:
        path = (here / name).resolve()
        roots = (here.resolve(), anchor.resolve().parent)
        found = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        msg = f"{expected}, got a path that cannot be followed ({error})."
        raise CheckpointError(msg) from error
    if ".." in Path(name).parts or not any(path.is_relative_to(root) for root in roots):
        msg = f"{expected}, got a path or link that leads out of it. The file was not read."
        raise CheckpointError(msg)
    if not found:
        msg = f"{expected}, got no regular file of that name. Copy all files of the checkpoint."
        raise CheckpointError(msg)
    return here / name

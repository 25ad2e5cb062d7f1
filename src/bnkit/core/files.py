"""Files that are complete or not there, whatever happens while they are written."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bnkit.core.errors import OutputError

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what was written there takes its place at the end.

    After an error or Ctrl-C the file is as it was, and nothing else is left.

    Args:
        path: The final name; its folder exists.

    Yields:
        The temporary name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(
    path: Path,
    write: Callable[[Path], object],
    *,
    expected: str = "to write there",
    advice: str = "Choose another name.",
    errors: tuple[type[Exception], ...] = (),
) -> Path:
    """Let something write a file under a temporary name, then rename it.

    Args:
        path: The final name; its folder exists.
        write: Is given the temporary name.
        expected: What was wanted, for the message.
        advice: What to do where the disk is not full, for the message.
        errors: What else the writer may raise when it cannot write.

    Returns:
        `path`.

    Raises:
        OutputError: The file cannot be written; it is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_whole(Path(folder) / "a.txt", lambda t: t.write_text("all of it"))
        ...     path.read_text()
        'all of it'
    """
    path = Path(path)
    if path.is_dir():
        msg = f"{str(path)!r}: expected {expected}, got a folder. {advice}"
        raise OutputError(msg)
    try:
        with replacing(path) as temporary:
            write(temporary)
    except (OSError, *errors) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"{str(path)!r}: expected {expected}, got: {reason}. {what_to_do(error, advice)}"
        raise OutputError(msg) from error
    return path


def write_text(path: Path, text: str, *, advice: str = "Choose another name.") -> Path:
    """Write text in UTF-8; the file is complete or as it was.

    Args:
        path: The final name; its folder exists.
        text: All of it.
        advice: What to do where the disk is not full, for the message.

    Returns:
        `path`.
    """
    return write_whole(path, lambda t: t.write_text(text, encoding="utf-8"), advice=advice)


def check_writable(path: Path, *, advice: str = "Choose another name.") -> None:
    """Prove that a file can be written where it is wanted.

    Args:
        path: The file.
        advice: What to do otherwise, for the message.

    Raises:
        OutputError: Its folder does not exist or cannot be written, or it is a folder itself.
    """
    expected = f"{str(path)!r}: expected a file that can be written"
    if path.is_dir():
        msg = f"{expected}, got a folder. {advice}"
        raise OutputError(msg)
    try:
        prove_writable(path.parent)
    except OSError as error:
        msg = f"{expected}, got: {error.strerror or error}. {what_to_do(error, advice)}"
        raise OutputError(msg) from error


def prove_writable(folder: Path) -> None:
    """Make a nameless file in a folder; an OSError says that it cannot be written.

    Args:
        folder: Where files are wanted.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def what_to_do(error: Exception, otherwise: str) -> str:
    """The advice of a message about a file that could not be written.

    Args:
        error: What the operating system said.
        otherwise: The advice where the disk is not full.

    Returns:
        A sentence: to make room where there is none left.

    Example:
        >>> what_to_do(OSError(errno.ENOSPC, "No space left on device"), "Choose another folder.")
        'Make room on the disk, then run the same command again.'
    """
    if getattr(error, "errno", None) in FULL:
        return "Make room on the disk, then run the same command again."
    return otherwise

"""The output folder: checked first, written by renaming, finished parts kept for the next run."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from bnkit import __version__
from bnkit.core.errors import OutputError
from bnkit.core.files import prove_writable, what_to_do, write_whole

_ADVICE = "Choose another folder with --out."


def prepare_folder(folder: Path) -> Path:
    """Create `folder` if needed and prove that files can be written in it.

    Args:
        folder: Where results are wanted.

    Returns:
        The same path.

    Raises:
        OutputError: A file is in its place, or it cannot be created or written.
    """
    expected = f"output folder {str(folder)!r}: expected a folder that can be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        prove_writable(folder)
    except FileExistsError as error:
        msg = f"{expected}, got a file of that name. Choose another one with --out."
        raise OutputError(msg) from error
    except OSError as error:
        msg = f"{expected}, got: {error.strerror or error}. {what_to_do(error, _ADVICE)}"
        raise OutputError(msg) from error
    return folder


def write_json(document: Any, path: Path, *, indent: int | None = None) -> Path:
    """Write strict JSON (no NaN, no Infinity) to a temporary name, then rename it.

    Args:
        document: Plain values.
        path: The final name; its folder exists.
        indent: Spaces per level; None for one line.

    Returns:
        `path`.

    Raises:
        OutputError: The file cannot be written.
        ValueError: A number is not finite: it must be None in the document.
    """
    text = json.dumps(document, allow_nan=False, ensure_ascii=False, indent=indent)
    return write_whole(
        path,
        lambda t: t.write_text(text + "\n", encoding="utf-8"),
        expected="to write results there",
        advice=_ADVICE,
    )


@dataclass
class Parts:
    """Finished parts of long work, one JSON file each, found again under the same configuration.

    Attributes:
        folder: Where they are kept; None keeps nothing.
        fresh: Compute everything again and replace what is kept.
        reused: Parts found finished so far.
        computed: Parts computed so far.
        seconds: Time all of them took when they were computed.
    """

    folder: Path | None = None
    fresh: bool = False
    reused: int = 0
    computed: int = 0
    seconds: float = field(default=0.0)

    def get(self, name: str, key: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """The part `name`: read if it was finished under the same `key`, else computed and kept.

        Args:
            name: Short name of the part, fit for a file name.
            key: Everything the result depends on but the version of bnkit, as plain values.
            compute: Makes the part, as plain values.

        Returns:
            The part, as plain values.
        """
        key = json.loads(json.dumps({**key, "bnkit": __version__}, allow_nan=False))
        path = self._path(name, key)
        found = None if self.fresh or path is None else _read(path, key)
        if found is not None:
            self.reused += 1
            self.seconds += found["seconds"]
            return found["data"]
        start = perf_counter()
        data = compute()
        seconds = perf_counter() - start
        self.computed += 1
        self.seconds += seconds
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json({"key": key, "seconds": seconds, "data": data}, path)
        return data

    def _path(self, name: str, key: dict[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{name}-{digest}.json"


def _read(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The part in `path`, or None if it is not there, damaged, or of another configuration."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(found, dict) and {"key", "seconds", "data"} <= found.keys()
    return found if complete and found["key"] == key else None

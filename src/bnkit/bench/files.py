"""Files of the benchmark: checked before it runs, whole or not there, read back with a check."""

import json
from pathlib import Path
from typing import Any

from bnkit.bench.results import SCHEMA
from bnkit.core.errors import InputError
from bnkit.core.files import write_text


def write_document(document: dict[str, Any], path: Path) -> Path:
    """Write strict JSON: a number that is not finite is an error.

    Args:
        document: What `Report.to_dict` returns.
        path: The file.

    Returns:
        `path`.
    """
    text = json.dumps(document, allow_nan=False, ensure_ascii=False, indent=1)
    return write_text(path, text + "\n")


def read_document(path: Path) -> dict[str, Any]:
    """Read what `write_document` wrote.

    Args:
        path: The file.

    Returns:
        The document.

    Raises:
        InputError: It is not there, is no JSON, or comes from something else.
    """
    expected = f"{str(path)!r}: expected the JSON of `bnkit bench`"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{expected}, got: {error.strerror or error}. Write one with --json."
        raise InputError(msg) from error
    except ValueError as error:
        msg = f"{expected}, got a file that is no JSON ({error}). Write one with --json."
        raise InputError(msg) from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        msg = f"{expected} with schema {SCHEMA!r}, got {found!r}. Write one with --json."
        raise InputError(msg)
    return document

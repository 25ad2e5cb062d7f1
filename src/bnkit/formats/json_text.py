"""JSON of a file, or a clear refusal."""

import json
from collections.abc import Iterable
from typing import Any

from bnkit.formats.mapped import Mapped


def parse_json(source: Mapped, data: memoryview | bytes, place: str) -> Any:
    """Parse JSON; names of an object must differ.

    Args:
        source: The file, for messages.
        data: The text in UTF-8.
        place: What it is, for messages.

    Returns:
        The document.

    Raises:
        CheckpointError: It is no JSON, too deep, or names something twice.
    """
    text = source.text(data, place)
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise source.error(place, "JSON", f"something else ({error})") from error


def expect_object(source: Mapped, value: Any, place: str) -> dict[str, Any]:
    """Insist on an object.

    Args:
        source: The file, for messages.
        value: Part of a document.
        place: What it is, for messages.

    Returns:
        `value`.

    Raises:
        CheckpointError: It is something else.
    """
    if not isinstance(value, dict):
        raise source.error(place, "an object", f"a {type(value).__name__}")
    return value


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            msg = f"{name[:100]!r} occurs twice"
            raise ValueError(msg)
        found[name] = value
    return found

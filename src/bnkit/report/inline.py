"""Text that is safe inside the script and style elements of one HTML file."""

import base64
import hashlib
import json
import re
from typing import Any

from bnkit.core.errors import InputError

# `<` and `&` end or confuse a script element, U+2028 and U+2029 ended a line in old JavaScript.
_UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_CLOSES = re.compile(r"</(script|style)|<!--", re.IGNORECASE)


def inline_json(document: Any) -> str:
    r"""Return `document` as JSON that no HTML parser can read as markup.

    Args:
        document: Anything that `json` takes; every number finite.

    Returns:
        ASCII-safe in its markup characters: parsing it gives back an equal document.

    Raises:
        InputError: The document holds NaN or an infinity, or an object that JSON does not know.

    Example:
        >>> inline_json({"text": "</script>"})
        '{"text":"\\u003c/script\\u003e"}'
    """
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        msg = (
            f"results: expected finite numbers, text, lists and mappings, got: {error}. "
            "Write null for a number that is not finite, with a count beside it."
        )
        raise InputError(msg) from error
    return text.translate(_UNSAFE)


def inline_code(text: str, name: str) -> str:
    """Return a script or style sheet unchanged, after a check that its element cannot end early.

    Args:
        text: The source.
        name: The file it came from, for the message.

    Returns:
        The source with Unix line ends, the form that a browser hashes.

    Raises:
        InputError: The source holds a closing tag or the start of a comment of HTML.
    """
    if _CLOSES.search(text):
        msg = f"{name}: expected no '</script', '</style' or '<!--', got one. Split the string."
        raise InputError(msg)
    return text.replace("\r\n", "\n")


def csp_hash(text: str) -> str:
    """Return the Content-Security-Policy source that allows exactly this inline text.

    Args:
        text: Everything between the tags of the element.

    Returns:
        `'sha256-...'` with its quotes (CSP level 3, section 2.3.1).
    """
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

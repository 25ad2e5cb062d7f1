"""What autodoc takes from the docstrings, and how it reads them."""

import sys
from itertools import pairwise
from typing import Any, NamedTuple

from sphinx.application import Sphinx

_FIELD = type(NamedTuple("_Sample", [("field", int)]).field)


def mark_formulas(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Shows an indented block after a colon as it was typed.

    Docstrings carry formulas in plain text; reStructuredText would fill them into one paragraph.
    """
    for number, (line, blank) in enumerate(pairwise(lines)):
        after = lines[number + 2] if number + 2 < len(lines) else ""
        ends = line.endswith(":") and not line.endswith("::") and not blank.strip()
        if ends and _indent(after) > _indent(line):
            lines[number] = line + ":"


def skip(_app: Sphinx, what: str, name: str, obj: Any, _skip: Any, _options: Any) -> bool | None:
    """Leaves out what a package does not export, and the fields that a NamedTuple describes."""
    if isinstance(obj, _FIELD):
        return True
    package = getattr(obj, "__module__", "").rpartition(".")[0]
    if what == "module" and package.startswith("bnkit."):
        return True if not hasattr(sys.modules[package], name) else None
    return None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip()) if line.strip() else 0


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    # before napoleon, which has the default priority of 500
    app.connect("autodoc-process-docstring", mark_formulas, priority=400)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}

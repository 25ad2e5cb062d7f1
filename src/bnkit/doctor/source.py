"""Where in the source a layer is built, for messages that point at a line."""

import inspect
import re
from functools import cache
from pathlib import Path

from torch import nn

_TORCH = str(Path(inspect.getsourcefile(nn.Module) or "").parents[2])


def built_at(model: nn.Module, name: str) -> tuple[str, int] | None:
    """File and line of the class that builds a layer.

    The line is that of `self.<attribute> =`, else of the class. Containers of torch build
    nothing: the class that holds the container is meant.

    Args:
        model: The model.
        name: Qualified name of the layer.

    Returns:
        The place, or None where no source is known (a model of containers alone, or a class
        typed into an interpreter).
    """
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        try:
            owner = model.get_submodule(".".join(parts[:depth]))
        except AttributeError:
            continue
        place = _place(type(owner), parts[depth])
        if place is not None:
            return place
    return None


@cache
def _place(kind: type, attribute: str) -> tuple[str, int] | None:
    try:
        file = inspect.getsourcefile(kind)
        lines, first = inspect.getsourcelines(kind)
    except (OSError, TypeError):
        return None
    if file is None or file.startswith(_TORCH):
        return None
    assigns = re.compile(rf"\bself\.{re.escape(attribute)}\b\s*(:[^=]+)?=")
    for number, line in enumerate(lines):
        if assigns.search(line):
            return file, first + number
    return file, first

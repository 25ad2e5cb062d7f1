"""Where text goes: results to stdout, everything else to stderr; plain when not a terminal."""

import os
from typing import Literal

from rich.console import Console
from rich.text import Text

Language = Literal["en", "zh"]


def out() -> Console:
    """The console of the results."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def err() -> Console:
    """The console of progress and errors."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def error(message: str, *, title: str = "error") -> None:
    """Write one message to stderr.

    Args:
        message: What went wrong and what to do.
        title: The word before it.
    """
    err().print(Text.assemble((f"{title}: ", "bold red"), message))


def language(wanted: Language | None) -> Language:
    """The language asked for, else that of the locale: Chinese or English.

    Args:
        wanted: What the user asked for; None looks at the environment.

    Returns:
        "en" or "zh".
    """
    if wanted is not None:
        return wanted
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    first = next((os.environ[n] for n in names if os.environ.get(n)), "")
    return "zh" if first.lower().startswith("zh") else "en"

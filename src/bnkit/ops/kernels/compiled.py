"""How the loops are compiled."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba

# NaN and infinity keep their meaning, and nothing is reordered: (a - c) + (b - c) must not become
# (a + b) - 2 c, which loses the digits that the subtraction was there to save.
STRICT = {"contract", "nsz"}


def _digest() -> str:
    """A name for the sources of all loops as they are now.

    Numba keeps machine code beside the file of a function and looks at that file only; the code
    of the functions it calls, from other files, is part of it.

    Returns:
        Twelve hexadecimal digits.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


_SOURCES = _digest()


def compiled(function: Callable) -> Any:
    """Compile a loop with Numba: without the GIL, and cached on disk.

    Args:
        function: The loop.

    Returns:
        The compiled function.
    """
    function.__qualname__ = f"{function.__qualname__}_{_SOURCES}"
    return numba.njit(nogil=True, cache=True, fastmath=STRICT, error_model="numpy")(function)


def specialized(template: Callable, **names: Any) -> Any:
    """Compile a function whose global names mean something else in each of its variants.

    A closure would read better, but Numba cannot find the machine code of one again that calls
    other compiled functions, and would compile it in every process.

    Args:
        template: A function of a module.
        names: What the names mean; strings, booleans and dtypes tell the variants apart.

    Returns:
        The compiled function.
    """
    telling = [v for v in names.values() if isinstance(v, str | bool | type)]
    suffix = "_".join(v.__name__ if isinstance(v, type) else str(v) for v in telling)
    code = template.__code__
    variant = FunctionType(code, {**template.__globals__, **names}, template.__name__)
    variant.__qualname__ = f"{template.__qualname__}_{suffix}"
    variant.__module__ = template.__module__
    return compiled(variant)

"""How the loops are compiled, and a sigmoid that vectorises."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

# NaN and infinity keep their meaning, and nothing is reordered: (a - c) + (b - c) must not become
# (a + b) - 2 c, which loses the digits that the subtraction was there to save.
STRICT = {"contract", "nsz"}
# A sum along the vectorised direction can only be vectorised by reordering it.
_SUMS = STRICT | {"reassoc"}

_LOG2_E = np.float32(1 / math.log(2))
_LIMIT = np.float32(126)
_HALF, _ONE = np.float32(0.5), np.float32(1)
# 2^f on [-1/2, 1/2] by its Taylor series; the first term left out is below 6e-9
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (
    np.float32(math.log(2) ** k / math.factorial(k)) for k in range(1, 8)
)


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


def compiled(function: Callable, *, sums: bool = False) -> Any:
    """Compile a loop with Numba: without the GIL, and cached on disk.

    Args:
        function: The loop.
        sums: Permit sums to be reordered.

    Returns:
        The compiled function.
    """
    function.__qualname__ = f"{function.__qualname__}_{_SOURCES}"
    flags = _SUMS if sums else STRICT
    return numba.njit(nogil=True, cache=True, fastmath=flags, error_model="numpy")(function)


def compiled_sums(function: Callable) -> Any:
    """As `compiled`, with permission to reorder sums."""
    return compiled(function, sums=True)


def specialized(template: Callable, *, sums: bool = False, **names: Any) -> Any:
    """Compile a function whose global names mean something else in each of its variants.

    A closure would read better, but Numba cannot find the machine code of one again that calls
    other compiled functions, and would compile it in every process.

    Args:
        template: A function of a module.
        sums: Permit sums to be reordered.
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
    return compiled(variant, sums=sums)


@intrinsic
def _power_of_two(typing_context: Any, exponent: Any) -> Any:  # noqa: ARG001  Numba's form
    """The float32 `2**exponent`, for int32 exponents from -126 to 127."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        int32 = ir.IntType(32)
        biased = builder.add(arguments[0], ir.Constant(int32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(int32, 23)), ir.FloatType())

    return types.float32(types.int32), generate


def sigmoid(z: float) -> float:
    """`1 / (1 + exp(-z))` in the precision of z."""
    return 1 / (1 + math.exp(-z))


def _sigmoid_wide(z: Any) -> Any:
    return 1 / (1 + math.exp(-z))


def _sigmoid_narrow(z: Any) -> Any:
    t = min(max(-z * _LOG2_E, -_LIMIT), _LIMIT)
    n = math.floor(t + _HALF)
    f = t - np.float32(n)
    p = f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * (_C6 + f * _C7)))))) + _ONE
    power: Any = _power_of_two(np.int32(n))  # pyright: ignore[reportCallIssue]
    return _ONE / (_ONE + p * power)


@overload(sigmoid, jit_options={"fastmath": STRICT}, inline="always")
def _choose_sigmoid(z: Any) -> Callable:
    return _sigmoid_narrow if z == types.float32 else _sigmoid_wide

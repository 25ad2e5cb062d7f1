"""Inputs that a folded model is least likely to survive by luck."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def stressed(inputs: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Inputs, and variations of the floating ones that a wrong folding does not survive by luck.

    Large and small values change how shifts compare to the rest, zeros leave them alone, heavy
    borders show padding, and constant channels every position where a shift is missing.

    Args:
        inputs: Arrays by name.

    Yields:
        A name, and the arrays.
    """
    changes: dict[str, Callable[[np.ndarray], Any]] = {
        "": lambda a: a,
        " times 100": lambda a: a * 100,
        " divided by 100": lambda a: a / 100,
        " zeros": np.zeros_like,
        " with borders times 100": _with_borders,
        " with constant channels": _with_constant_channels,
    }
    for name, change in changes.items():
        with np.errstate(over="ignore"):
            changed = {
                n: np.asarray(change(a.astype(np.float64))).astype(a.dtype) if is_float(a) else a
                for n, a in inputs.items()
            }
        yield name, changed


def _with_borders(values: np.ndarray) -> np.ndarray:
    factor = np.ones_like(values)
    for axis in range(2, values.ndim):
        moved = np.moveaxis(factor, axis, 0)
        moved[:1] = moved[-1:] = 100
    return values * factor


def _with_constant_channels(values: np.ndarray) -> np.ndarray:
    if values.ndim < 2:
        return np.ones_like(values)
    each = np.linspace(-2, 2, values.shape[1]).reshape(1, -1, *[1] * (values.ndim - 2))
    return np.broadcast_to(each, values.shape)


def is_float(array: np.ndarray) -> bool:
    """Whether an array holds floating point numbers, bfloat16 among them."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"

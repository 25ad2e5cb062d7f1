"""Inputs that a folded model is least likely to survive by luck."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bnkit.fold.observing import Call

NAMES = ("given", "times 100", "divided by 100", "zeros", "border 100 times", "constant channels")


def stressed(call: Call) -> Iterator[tuple[str, Call]]:
    """A call, and variations of its floating point inputs.

    Large and small inputs change how the shift compares to the rest, zeros leave the shift alone,
    heavy borders show padding, and constant channels every position where a shift is missing.

    Args:
        call: An example call.

    Yields:
        Name and call, the given one first.
    """
    changes: dict[str, Any] = {
        "given": lambda x: x,
        "times 100": lambda x: x * 100,
        "divided by 100": lambda x: x / 100,
        "zeros": torch.zeros_like,
        "border 100 times": _border,
        "constant channels": _constant,
    }
    for name, change in changes.items():
        yield name, Call(*tree_map(lambda v, c=change: _changed(v, c), tuple(call)))


def _changed(value: Any, change: Any) -> Any:
    return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def _border(x: Tensor) -> Tensor:
    """The outermost values of each dimension behind the channels, times 100."""
    factor = torch.ones_like(x)
    for dim in range(2, x.ndim):
        for position in {0, x.shape[dim] - 1}:
            factor.select(dim, position).fill_(100)
    return x * factor


def _constant(x: Tensor) -> Tensor:
    """Every channel has one value, from -2 to 2."""
    if x.ndim < 2 or x.shape[1] == 0:
        return torch.ones_like(x)
    values = torch.linspace(-2, 2, x.shape[1], dtype=x.dtype, device=x.device)
    return values.view(1, -1, *[1] * (x.ndim - 2)).expand_as(x).contiguous()


def as_dtype(call: Call, dtype: torch.dtype) -> Call:
    """The same call, with its floating point inputs in another dtype."""
    return Call(*tree_map(lambda v: _changed(v, lambda x: x.to(dtype)), tuple(call)))

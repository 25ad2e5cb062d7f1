"""How a batch reaches a model, and how a message names it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from bnkit.core import InputError
from bnkit.sources.batches import leaves

Forward = Callable[[nn.Module, Any], Any]


def samples_of(batch: Any) -> int:
    """Samples of a batch: the length of its first tensor."""
    first = next((v for v in leaves(batch) if v.ndim), None)
    return 0 if first is None else len(first)


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch of any form.

    A dict gives the arguments by name, without those that `model.forward` does not have (labels).
    Of a tuple or list the first entry is the input, as loaders give `(input, target)`.

    Args:
        model: The model.
        batch: A batch.

    Returns:
        Its output.

    Raises:
        InputError: No entry of a dict is an argument, or a tuple is empty.
    """
    if isinstance(batch, Mapping):
        taken = _arguments(model)
        given = {k: v for k, v in batch.items() if taken is None or k in taken}
        if not given:
            msg = (
                f"recalibrate: expected a batch with arguments of {type(model).__name__}.forward "
                f"({', '.join(taken or ())}), got a dict of {', '.join(map(repr, batch))}. Pass "
                "forward=lambda model, batch: ..."
            )
            raise InputError(msg)
        return model(**given)
    if isinstance(batch, tuple | list):
        if not batch:
            msg = "recalibrate: expected a batch (input, ...), got an empty tuple or list."
            raise InputError(msg)
        return model(batch[0])
    return model(batch)


def _arguments(model: nn.Module) -> tuple[str, ...] | None:
    """The names that a forward pass takes; None = any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def described(batch: Any) -> str:
    """A batch in a few words, for a message."""
    shapes = [f"{str(v.dtype).removeprefix('torch.')} {tuple(v.shape)}" for v in leaves(batch)]
    return f"{type(batch).__name__} of {', '.join(shapes[:4]) or 'no tensor'}"

"""The name a layer has in the model that is running it."""

import sys

import torch
from torch import nn

from bnkit.core import InputError


def qualified_name(layer: nn.Module) -> str:
    """Name of a layer for a message: `'features.1' (BatchNorm2d)`.

    A module does not know its parents, but while it runs they are on the call stack: the
    outermost module that contains the layer gives the name. Costs a walk over the stack, so use
    it where a message is being written.

    Args:
        layer: Any module.

    Returns:
        The quoted name and the class, or the class alone outside a model.

    Example:
        >>> import torch, bnkit.nn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), bnkit.nn.BatchNorm1d(4))
        >>> bnkit.nn.qualified_name(model[1])
        'BatchNorm1d'
        >>> try:
        ...     model(torch.zeros(1, 3))
        ... except bnkit.BatchNormError as error:
        ...     print(str(error).split(":")[0])
        '1' (BatchNorm1d)
    """
    kind = type(layer).__name__
    if torch.compiler.is_compiling():
        return kind  # a tracer has no stack to walk
    found = ""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner is not layer:
            found = _name_within(owner, layer) or found
        frame = frame.f_back
    return f"{found!r} ({kind})" if found else kind


def _name_within(owner: nn.Module, layer: nn.Module) -> str:
    return next((name for name, module in owner.named_modules() if module is layer), "")


def check_model(verb: str, model: object) -> None:
    """Raise `InputError` unless this is a module; `verb` is the function that asks."""
    if not isinstance(model, nn.Module):
        msg = f"{verb}: expected a torch.nn.Module, got {type(model).__name__}. Pass the model."
        raise InputError(msg)

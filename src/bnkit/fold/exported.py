"""Programs of `torch.export`, as modules that can be folded."""

from typing import Any

from torch import nn

from bnkit.core.errors import FoldError


def as_module(model: Any) -> nn.Module:
    """The model as a module.

    Args:
        model: A module.

    Returns:
        The module.

    Raises:
        FoldError: Something else.
    """
    if isinstance(model, nn.Module):
        return model
    msg = f"fold: expected a torch.nn.Module, got {type(model).__name__}."
    raise FoldError(msg)

"""Telling a tensor with numbers in memory from one that stands for something else."""

from collections.abc import Iterable

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
_transforms = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]


def is_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no tensor is traced, fake, a subclass, or wrapped by a transform of `torch.func`."""
    if torch.compiler.is_compiling() or _transforms() is not None:
        return False
    # a loop: a generator costs a microsecond, and this runs several times for each batch norm
    for t in tensors:  # noqa: SIM110
        if t is not None and type(t) not in _PLAIN:
            return False
    return True


def is_batched(tensor: Tensor) -> bool:
    """Whether a gradient stands for several, as `torch.autograd.grad(is_grads_batched=True)` asks.

    That is an older transform, which leaves no trace in the type or on the stack of transforms.

    Args:
        tensor: A gradient.

    Returns:
        Whether it is such a stack.
    """
    return _is_batched(tensor)


def has_tangents() -> bool:
    """Whether forward-mode differentiation is under way."""
    return torch.autograd.forward_ad._current_level >= 0

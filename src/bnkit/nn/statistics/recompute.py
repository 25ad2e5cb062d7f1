"""Telling a first forward pass from one that a backward pass repeats."""

from contextlib import AbstractContextManager, nullcontext

import torch

_task = torch._C._current_graph_task_id
_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore
_RECOMPUTATION = "_recomputation_hook."


def outside_of_checkpoint() -> AbstractContextManager:
    """A context in which saved tensors are saved as they are, whatever hooks there are."""
    if torch.compiler.is_compiling() or _hooks(True) is None:  # noqa: FBT003
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


def may_be_repeated() -> bool:
    """Whether this forward pass has the marks of one that will be repeated.

    Reentrant checkpointing runs it without gradients, the other form with hooks on saved tensors.

    Returns:
        True also for other passes like that; False for ordinary ones.
    """
    return not torch.is_grad_enabled() or _hooks(True) is not None  # noqa: FBT003


def recomputing() -> bool:
    """Whether this forward pass repeats an earlier one, for its activations.

    Activation checkpointing drops what a forward pass stored and runs it again when the backward
    pass needs it (Chen et al. 2016). Both forms of `torch.utils.checkpoint` do so inside the
    autograd engine, and so do fairscale, DeepSpeed and reversible networks: a forward pass while
    the engine runs is a repetition. `use_reentrant=False` also repeats when a saved tensor is
    looked at outside of a backward pass; there its hook on saved tensors gives it away.

    Code that a compiler traces knows nothing of this and answers False. `torch.compile` around
    `checkpoint` is right all the same; an eager `checkpoint` around compiled code is not.

    Returns:
        Whether statistics of this pass were counted before.

    Example:
        >>> import torch
        >>> from torch.utils.checkpoint import checkpoint
        >>> from bnkit.nn import recomputing
        >>> seen = []
        >>> def double(x):
        ...     seen.append(recomputing())
        ...     return (2 * x).exp()
        >>> x = torch.ones(1, requires_grad=True)
        >>> checkpoint(double, x, use_reentrant=False).backward()
        >>> seen
        [False, True]
    """
    if torch.compiler.is_compiling():
        return False
    if _task() != -1:
        return True
    hooks = _hooks(True)  # noqa: FBT003  also while tracing
    return hooks is not None and getattr(hooks[0], "__qualname__", "").startswith(_RECOMPUTATION)

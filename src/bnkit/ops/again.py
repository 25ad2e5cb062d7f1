"""Gradients of an operation that is run once more, differentiably."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def gradients_again(
    grad: Tensor, inputs: tuple[Tensor | None, ...], run: Callable[..., Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients by differentiable operations, for derivatives of them and for vmap.

    Args:
        grad: Gradient of the output; a stack of several under `is_grads_batched`.
        inputs: Tensors or None; those that require gradients get them.
        run: The operation, from these inputs to its output.

    Returns:
        One for each input, or None. With gradients enabled they can be differentiated again.
    """
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        given: list[Any] = [
            t if t is None or further else t.detach().requires_grad_(t.requires_grad)
            for t in inputs
        ]
        y = run(*given)
        wanted = [t for t in given if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=further))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in given)

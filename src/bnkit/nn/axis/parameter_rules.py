"""How parameters start, what they cost, and where they must stay.

Initializers, regularizers and constraints, as the layers of TensorFlow take them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnkit.core import SpecError

Initializer = str | float | Callable[[Tensor], object]
Regularizer = Callable[[Tensor], Tensor]
Constraint = Callable[[Tensor], Tensor]
_NAMED = {"zeros": 0.0, "ones": 1.0}


def initialize_(where: str, tensor: Tensor, how: Initializer) -> None:
    """Give a tensor its first values.

    Args:
        where: Head of an error message.
        tensor: Changed in place.
        how: `"zeros"`, `"ones"`, a number, or a function that changes a tensor in place, such as
            those of `torch.nn.init`.

    Raises:
        SpecError: Something else.
    """
    if isinstance(how, str):
        if how not in _NAMED:
            msg = (
                f"{where}: expected an initializer 'zeros', 'ones', a number or a function such as "
                f"those of torch.nn.init, got {how!r}."
            )
            raise SpecError(msg)
        how = _NAMED[how]
    with torch.no_grad():
        if callable(how):
            how(tensor)
        elif isinstance(how, int | float) and not isinstance(how, bool):
            tensor.fill_(how)
        else:
            msg = f"{where}: expected an initializer, got {how!r}. Pass a number or a function."
            raise SpecError(msg)


def regularization_loss(model: nn.Module) -> Tensor:
    """The sum of what the regularizers of a model's `BatchNorm` layers say; add it to the loss.

    TensorFlow collects these losses by itself (`tf.GraphKeys.REGULARIZATION_LOSSES`) and adds
    them as little: the training loop must.

    Args:
        model: Any module, also a layer itself.

    Returns:
        One number, differentiable; 0 without regularizers.

    Example:
        >>> import torch, bnkit
        >>> square = lambda v: 0.1 * v.square().sum()
        >>> layer = bnkit.nn.BatchNorm(3, weight_regularizer=square)
        >>> round(bnkit.nn.regularization_loss(layer).item(), 3)
        0.3
    """
    total = torch.zeros(())
    for module in model.modules():
        for name, rule in module.__dict__.get("regularizers", {}).items():
            parameter = getattr(module, name)
            if rule is not None and parameter is not None:
                loss = rule(parameter)
                total = loss + total.to(loss.device)
    return total


def constrain_(model: nn.Module) -> None:
    """Project the parameters of a model's `BatchNorm` layers to where their constraints say.

    Args:
        model: Any module, also a layer itself; changed in place.
    """
    with torch.no_grad():
        for module in model.modules():
            for name, rule in module.__dict__.get("constraints", {}).items():
                parameter = getattr(module, name)
                if rule is not None and parameter is not None:
                    parameter.copy_(rule(parameter))


def constrain_after(optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
    """Project after every step of an optimizer, as TensorFlow's optimizers do.

    Args:
        optimizer: The optimizer that trains the model.
        model: The model.

    Returns:
        Its `remove()` ends the projection.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchNorm(3, weight_constraint=lambda w: w.clamp(min=0))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
        >>> handle = bnkit.nn.constrain_after(optimizer, layer)
        >>> layer.weight.sum().backward()
        >>> optimizer.step()
        >>> layer.weight.tolist()
        [0.0, 0.0, 0.0]
    """
    return optimizer.register_step_post_hook(lambda *_: constrain_(model))

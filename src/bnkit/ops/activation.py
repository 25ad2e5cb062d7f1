"""The activations that can be fused into a batch norm."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnkit.core import SpecError

NAMES = ("none", "relu", "relu6", "leaky_relu", "silu")


class Activation(NamedTuple):
    """One of `NAMES`, with the slope of the leaky ReLU."""

    name: str = "none"
    slope: float = 0.0

    def __call__(self, z: Tensor) -> Tensor:
        """The activation, by differentiable torch operations."""
        if self.name == "relu":
            return torch.relu(z)
        if self.name == "relu6":
            return torch.nn.functional.relu6(z)
        if self.name == "leaky_relu":
            return torch.nn.functional.leaky_relu(z, self.slope)
        return torch.nn.functional.silu(z) if self.name == "silu" else z

    def backward(self, grad: Tensor, z: Tensor) -> Tensor:
        """Gradient before the activation from the one behind it, by differentiable operations."""
        if self.name == "relu":
            return torch.where(z > 0, grad, torch.zeros_like(grad))
        if self.name == "relu6":
            return torch.where((z > 0) & (z < 6), grad, torch.zeros_like(grad))
        if self.name == "leaky_relu":
            return torch.where(z > 0, grad, grad * self.slope)
        if self.name == "silu":
            p = torch.sigmoid(z)
            return grad * (p + z * (p - p * p))
        return grad


IDENTITY = Activation()


def invertible(act: Activation) -> bool:
    """Whether what is before the activation follows from what is behind it."""
    return act.name == "none" or (act.name == "leaky_relu" and act.slope > 0)


def activation(given: "str | nn.Module | Activation | None") -> Activation:
    """The activation that a name, a module or None stands for.

    Args:
        given: A name of `NAMES`, `torch.nn.ReLU`, `ReLU6`, `LeakyReLU`, `SiLU`, `Identity` or
            None.

    Returns:
        The activation.

    Raises:
        SpecError: Anything else.

    Example:
        >>> import torch
        >>> from bnkit.ops import activation
        >>> activation(torch.nn.LeakyReLU(0.2))
        Activation(name='leaky_relu', slope=0.2)
    """
    if isinstance(given, Activation):
        return given
    if given is None or isinstance(given, nn.Identity):
        return IDENTITY
    if isinstance(given, nn.LeakyReLU):
        return Activation("leaky_relu", given.negative_slope)
    names: dict[type, str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu"}
    name = given if isinstance(given, str) else names.get(type(given))
    if name is not None and name in NAMES:
        return Activation(name, 0.01 if name == "leaky_relu" else 0.0)
    msg = (
        f"activation: expected {', '.join(map(repr, NAMES))} or the torch.nn module of one of "
        f"them, got {given!r}. Other activations stand in a layer of their own."
    )
    raise SpecError(msg)

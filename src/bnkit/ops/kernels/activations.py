"""The activations as pieces of a loop; the name is known when the loop is compiled."""

from functools import cache
from typing import Any

from bnkit.ops.kernels.compiled import compiled, sigmoid


@cache
def activate(act: str) -> Any:
    """`f(z, slope)`: the activation of one value.

    Args:
        act: "none", "relu", "leaky_relu" or "silu".

    Returns:
        A compiled function, which becomes part of the loop that calls it.
    """

    @compiled
    def forward(z: Any, slope: Any) -> Any:
        if act == "relu":
            return z * 0 if z < 0 else z  # a NaN stays
        if act == "leaky_relu":
            return z * slope if z < 0 else z
        if act == "silu":
            return z * sigmoid(z)
        return z

    return forward


@cache
def through(act: str) -> Any:
    """`f(g, z, slope)`: the gradient g behind the activation, carried to before it.

    Args:
        act: "none", "relu", "leaky_relu" or "silu".

    Returns:
        A compiled function, which becomes part of the loop that calls it.
    """

    @compiled
    def backward(g: Any, z: Any, slope: Any) -> Any:
        if act == "relu":
            return g if z > 0 else g * 0
        if act == "leaky_relu":
            return g if z > 0 else g * slope
        if act == "silu":
            p = sigmoid(z)
            return g * p + g * z * (p - p * p)
        return g

    return backward

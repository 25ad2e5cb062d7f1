"""The activations as pieces of a loop; the name is known when the loop is compiled."""

from functools import cache
from typing import Any

from bnkit.ops.kernels.compiled import sigmoid, specialized

# bound anew for each variant
act = "none"


def _forward(z: Any, slope: Any) -> Any:
    if act == "relu":
        return z * 0 if z < 0 else z  # a NaN stays
    if act == "leaky_relu":
        return z * slope if z < 0 else z
    if act == "silu":
        return z * sigmoid(z)
    return z


def _backward(g: Any, z: Any, slope: Any) -> Any:
    if act == "relu":
        return g if z > 0 else g * 0
    if act == "leaky_relu":
        return g if z > 0 else g * slope
    if act == "silu":
        p = sigmoid(z)
        return g * p + g * z * (p - p * p)
    return g


@cache
def activate(act: str) -> Any:
    """`f(z, slope)`: the activation of one value.

    Args:
        act: "none", "relu", "leaky_relu" or "silu".

    Returns:
        A compiled function, which becomes part of the loop that calls it.
    """
    return specialized(_forward, act=act)


@cache
def through(act: str) -> Any:
    """`f(g, z, slope)`: the gradient g behind the activation, carried to before it.

    Args:
        act: "none", "relu", "leaky_relu" or "silu".

    Returns:
        A compiled function, which becomes part of the loop that calls it.
    """
    return specialized(_backward, act=act)

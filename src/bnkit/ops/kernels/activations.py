"""The activations as pieces of a loop; the name is known when the loop is compiled."""

import math
from functools import cache
from typing import Any

import numpy as np

from bnkit.ops.kernels.compiled import compiled, specialized
from bnkit.ops.kernels.vector import floor, fma, number, power_of_two, spread, where_less

# bound anew for each variant
act = "none"

_LOG2_E = 1 / math.log(2)
# what a float32, and then a float64, leaves out of it
_LOG2_E_REST = _LOG2_E - float(np.float32(_LOG2_E))
_LOG2_E_REST_WIDE = 2.0355273740931033e-17
# 2^f by its Taylor series: terms left out are below half a unit of the last digit
_TERMS = tuple(math.log(2) ** k / math.factorial(k) for k in range(14))


@compiled
def _polynomial(like: Any, f: Any) -> Any:
    """`2**f` for f in [-1/2, 1/2]."""
    highest = 7 if like.itemsize < 8 else 13
    p = spread(number(like, _TERMS[highest]))
    for k in range(highest - 1, -1, -1):
        p = fma(p, f, spread(number(like, _TERMS[k])))
    return p


@compiled
def sigmoid(like: Any, z: Any) -> Any:
    """`1 / (1 + exp(-z))` of a vector, in the precision of an array.

    `exp(-z) = 2**n * 2**f` with n whole and f in [-1/2, 1/2]; the product with log2(e) is carried
    in two parts, so that a large n costs f no digits (Cody & Waite 1980).

    Args:
        like: An array in whose precision to compute.
        z: A vector.

    Returns:
        A vector.
    """
    narrow = like.itemsize < 8
    limit = number(like, 126.0 if narrow else 1022.0)
    rest = number(like, _LOG2_E_REST if narrow else _LOG2_E_REST_WIDE)
    one, half, zero = spread(number(like, 1)), spread(number(like, 0.5)), spread(number(like, 0))
    u = zero - z
    e = spread(number(like, _LOG2_E))
    t = u * e
    t = where_less(t, spread(-limit), spread(-limit), t)
    t = where_less(spread(limit), t, spread(limit), t)
    n = floor(t + half)
    # where t was limited, f must stay small; what is lost there does not reach the result
    f = fma(u, e, zero - n) + u * spread(rest)
    f = where_less(half, f, half, where_less(f, zero - half, zero - half, f))
    return one / fma(_polynomial(like, f), power_of_two(n), one)


def _forward(like: Any, z: Any, slope: Any) -> Any:
    zero = spread(number(like, 0))
    if act == "relu":
        return where_less(z, zero, zero, z)  # a NaN stays
    if act == "relu6":
        six = spread(number(like, 6))
        return where_less(six, z, six, where_less(z, zero, zero, z))
    if act == "leaky_relu":
        return where_less(z, zero, z * slope, z)
    if act == "silu":
        return z * sigmoid(like, z)
    return z


def _backward(like: Any, g: Any, z: Any, slope: Any) -> Any:
    zero = spread(number(like, 0))
    if act == "relu":
        return where_less(zero, z, g, zero)
    if act == "relu6":
        return where_less(zero, z, where_less(z, spread(number(like, 6)), g, zero), zero)
    if act == "leaky_relu":
        return where_less(zero, z, g, g * slope)
    if act == "silu":
        p = sigmoid(like, z)
        return g * fma(z, p - p * p, p)
    return g


@cache
def activate(act: str) -> Any:
    """`f(like, z, slope)`: the activation of a vector in the precision of the array `like`.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.

    Returns:
        A compiled function, which becomes part of the loop that calls it.
    """
    return specialized(_forward, act=act)


@cache
def through(act: str) -> Any:
    """`f(like, g, z, slope)`: the gradient g behind the activation, carried to before it.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.

    Returns:
        A compiled function, which becomes part of the loop that calls it.
    """
    return specialized(_backward, act=act)

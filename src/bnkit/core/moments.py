"""Moments of a batch: count, mean and sum of squared deviations, and how two batches merge."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from array_api_compat import array_namespace
from jaxtyping import Float

from bnkit.core.errors import InputError

Array = Any


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations (m2), one entry per channel.

    A commutative monoid under `merge` with `Moments.empty()` as identity (up to rounding).

    Attributes:
        count: Number of values, or sum of their weights; one number, or one per channel.
        mean: Mean of the values, shape `(c,)`.
        m2: Sum of `weight * |x - mean|**2`, shape `(c,)`, real and never negative.
    """

    count: Any
    mean: Float[Array, "*c"]
    m2: Float[Array, "*c"]

    @staticmethod
    def empty(mean: Array) -> "Moments":
        """The identity of `merge`, shaped like `mean`: no values, mean 0, m2 0."""
        zero = mean * 0
        return Moments(0, zero, _real(zero))

    def var(self, correction: float = 0) -> Array:
        """Variance `m2 / (count - correction)`; `correction=1` is Bessel's.

        Args:
            correction: Subtracted from the count.

        Returns:
            The variance; that of no values at all, without correction, is 0.
        """
        return self.m2 / (self.count - correction if correction else at_least_one_value(self.count))


def moments(
    x: Float[Array, "..."],
    axes: Sequence[int] | None = None,
    weights: Float[Array, "..."] | None = None,
    *,
    xp: Any = None,
) -> Moments:
    """Count, mean and m2 of `x` over `axes`, by the corrected two-pass algorithm.

    The second pass takes deviations from the computed mean and adds back what rounding left in
    it, so that the error does not grow with `mean / std` (Chan, Golub & LeVeque 1983; theory page,
    equations 1 and 2).
    `E[x**2] - E[x]**2` is never computed: in float32 it is worthless from mean/std about 1e3 on.
    16-bit input is computed in float32.

    Args:
        x: Values, of any shape; real or complex floating point.
        axes: Axes to reduce; the others are the channels. None reduces all axes.
        weights: Non-negative weights that broadcast against `x`, 0 = not there. The count is
            their sum.
        xp: The array namespace, when the caller knows it.

    Returns:
        Moments shaped like the channels, in at least float32.

    Raises:
        InputError: `x` is not floating point.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import moments
        >>> m = moments(np.array([[1.0, 10.0], [3.0, 14.0]]), axes=(0,))
        >>> m.count, m.mean.tolist(), m.var().tolist(), m.var(correction=1).tolist()
        (2, [2.0, 12.0], [1.0, 4.0], [2.0, 8.0])
    """
    xp = array_namespace(x) if xp is None else xp
    axes = tuple(range(x.ndim)) if axes is None else tuple(a % x.ndim for a in axes)
    x = upcast(xp, x)
    if weights is None:
        count = prod([x.shape[a] for a in axes])  # dynamo traces no generator here
        kept = _two_pass(xp, x, axes, None, max(count, 1))
    else:
        weights = xp.broadcast_to(xp.astype(weights, real_dtype(xp, x)), x.shape)
        count = accumulate(xp, weights, axes)
        kept = _two_pass(xp, x, axes, weights, xp.where(count > 0, count, xp.ones_like(count)))
        count = xp.squeeze(count, axis=axes)
    mean, m2 = kept
    return Moments(count, xp.squeeze(mean, axis=axes), xp.squeeze(m2, axis=axes))


def merge(a: Moments, b: Moments, *, xp: Any = None) -> Moments:
    """Moments of the union of two batches (Chan, Golub & LeVeque 1983; theory page, equation 9).

    With `delta = b.mean - a.mean` and `n = a.count + b.count`:
    `mean = a.mean + delta * b.count / n`, `m2 = a.m2 + b.m2 + delta**2 * a.count * b.count / n`.
    Two empty sides give an empty batch, not NaN.

    Args:
        a: One batch.
        b: The other batch, with the same channels.
        xp: The array namespace, when the caller knows it.

    Returns:
        What `moments` gives for both batches together.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import merge, moments
        >>> left, right = np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])
        >>> both = merge(moments(left), moments(right))
        >>> both.count, float(both.mean), float(both.m2)
        (5, 3.0, 10.0)
    """
    xp = array_namespace(a.mean) if xp is None else xp
    count = a.count + b.count
    share = b.count / at_least_one_value(count, xp=xp)
    delta = b.mean - a.mean
    return Moments(
        count,
        a.mean + delta * share,
        a.m2 + b.m2 + inner(xp, delta, delta) * (a.count * share),
    )


def merge_stacked(parts: Moments, *, xp: Any = None) -> Moments:
    """Moments of the union of many batches, stacked along axis 0, in a fixed number of steps.

    Equation 9 of the theory page, for all parts at once: with `n = sum(count)` and
    `mean = sum(count * mean) / n`, `m2 = sum(m2) + sum(count * |mean_i - mean|**2)`. The last sum
    is the m2 of the means, weighted by their counts. A part with count 0 is not there.

    Args:
        parts: Count, mean and m2, each of shape `(parts, c)`.
        xp: The array namespace, when the caller knows it.

    Returns:
        What `merge` gives for them one after the other; the count per channel.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import Moments, merge_stacked
        >>> counts, means = np.array([[2.0], [0.0], [3.0]]), np.array([[1.5], [0.0], [4.0]])
        >>> whole = merge_stacked(Moments(counts, means, np.array([[0.5], [0.0], [2.0]])))
        >>> [float(v[0]) for v in whole]
        [5.0, 3.0, 10.0]
    """
    xp = array_namespace(parts.mean) if xp is None else xp
    between = moments(parts.mean, (0,), parts.count, xp=xp)
    within = xp.where(parts.count == 0, xp.zeros_like(parts.m2), parts.m2)
    return between._replace(m2=between.m2 + xp.sum(within, axis=0))


def accumulate(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    """Sum of `x` over `axes`, dimensions kept, rounded once where the namespace allows.

    NumPy adds naively along an outer axis, so it accumulates in double precision; torch adds in
    a cascade, whose error grows with the logarithm of the count.

    Args:
        xp: The array namespace.
        x: Values.
        axes: Axes to reduce.

    Returns:
        The sum, in the dtype of `x`.
    """
    # not is_torch_namespace: its cache makes dynamo warn
    if xp.__name__ == "array_api_compat.torch":
        return xp.sum(x, axis=axes, keepdims=True)
    wide = xp.complex128 if xp.isdtype(x.dtype, "complex floating") else xp.float64
    return xp.astype(xp.sum(x, axis=axes, keepdims=True, dtype=wide), x.dtype)


def upcast(xp: Any, x: Array) -> Array:
    """`x` in the dtype that statistics are computed in: itself, or float32 for 16 bits."""
    if x.dtype in (xp.float32, xp.float64) or xp.isdtype(x.dtype, "complex floating"):
        return x
    if xp.isdtype(x.dtype, ("integral", "bool")):
        msg = f"batch norm: expected floating point values, got {x.dtype}. Convert them first."
        raise InputError(msg)
    return xp.astype(x, xp.float32)


def real_dtype(xp: Any, x: Array) -> Any:
    """The dtype of a variance of `x`."""
    if xp.isdtype(x.dtype, "complex floating"):
        return xp.float32 if x.dtype == xp.complex64 else xp.float64
    return x.dtype


def inner(xp: Any, a: Array, b: Array) -> Array:
    """`Re(a * conj(b))`, elementwise: the product that a variance is made of."""
    if xp.isdtype(a.dtype, "complex floating"):
        return xp.real(a) * xp.real(b) + xp.imag(a) * xp.imag(b)
    return a * b


def _two_pass(
    xp: Any, x: Array, axes: tuple[int, ...], weights: Array | None, count: Any
) -> tuple[Array, Array]:
    def weigh(v: Array) -> Array:
        # selected, not multiplied: what is not there may be NaN
        return v if weights is None else xp.where(weights == 0, xp.zeros_like(v), v * weights)

    mean = accumulate(xp, weigh(x), axes) / count
    deviation = x - mean
    left = accumulate(xp, weigh(deviation), axes) / count
    m2 = accumulate(xp, weigh(inner(xp, deviation, deviation)), axes)
    m2 = m2 - inner(xp, left, left) * count
    # an infinite mean has no remainder; where, not maximum: a NaN must stay a NaN
    mean = mean + xp.where(xp.isfinite(left), left, xp.zeros_like(left))
    return mean, xp.where(m2 < 0, xp.zeros_like(m2), m2)


def at_least_one_value(count: Any, *, xp: Any = None) -> Any:
    """The count, or 1 where it is 0: what to divide the sums of no values by."""
    if isinstance(count, int | float):
        return count if count else 1
    xp = array_namespace(count) if xp is None else xp
    return xp.where(count == 0, xp.ones_like(count), count)


def _real(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.real(x) if xp.isdtype(x.dtype, "complex floating") else x

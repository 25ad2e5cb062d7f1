"""The standard deviation of bounded values, and the mean by way of it."""

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, plain, probability, unit, whole


def deviation_upper(var: Values, n: Values, delta: Values) -> Values:
    """Upper bound of a standard deviation (certificates page, statement 17).

    `sqrt(t) + sqrt(var + t)` with `t = log(1 / delta) / (2 (n - 1))`, for n independent values of
    one distribution in [0, 1]; below the `sqrt(var) + 2 sqrt(t)` of Maurer & Pontil (2009, theorem
    10), which follows from it.

    Args:
        var: Variance of the sample, divided by n - 1.
        n: Independent values, at least 2.
        delta: Probability with which the bound may fail.

    Returns:
        At most 1/2, which no value in [0, 1] exceeds.

    Example:
        >>> from bnkit.core.bounds import deviation_upper
        >>> round(deviation_upper(0.04, 1001, 0.05), 4)
        0.2424
    """
    var, t = _terms("deviation_upper", var, n, delta)
    return plain(np.minimum(0.5, np.sqrt(t / 2) + np.sqrt(var + t / 2)))


def deviation_lower(var: Values, n: Values, delta: Values) -> Values:
    """Lower bound of a standard deviation (certificates page, statement 17).

    The root of `(var + t / 2 - sqrt(t**2 + 8 var t) / 2)` with `t = log(1 / delta) / (n - 1)`,
    which is at least `sqrt(var) - sqrt(t)`; Maurer & Pontil have `sqrt(2 t)` there.

    Args:
        var: Variance of the sample, divided by n - 1.
        n: Independent values, at least 2.
        delta: Probability with which the bound may fail.

    Returns:
        At least 0.

    Example:
        >>> from bnkit.core.bounds import deviation_lower
        >>> round(deviation_lower(0.04, 1001, 0.05), 4)
        0.1611
    """
    var, t = _terms("deviation_lower", var, n, delta)
    square = np.where(var > t, var + t / 2 - np.sqrt(t**2 + 8 * var * t) / 2, 0.0)
    return plain(np.sqrt(np.maximum(square, 0.0)))


def bernstein_upper(mean: Values, var: Values, n: Values, delta: Values) -> Values:
    """Upper bound of a mean by the sample's variance (certificates page, statement 18).

    `mean + sqrt(2 s**2 l / n) + l / (3 n)` with `l = log(2 / delta)` and s from `deviation_upper`
    at `delta / 2`; below the `mean + sqrt(2 var l / n) + 7 l / (3 (n - 1))` of Maurer & Pontil
    (2009, theorem 4). A lower bound is one minus this for `1 - x`.

    Args:
        mean: Mean of the sample, in [0, 1].
        var: Variance of the sample, divided by n - 1.
        n: Independent values, at least 2.
        delta: Probability with which the bound may fail.

    Returns:
        A number in [mean, 1].

    Example:
        >>> from bnkit.core.bounds import bernstein_upper
        >>> round(bernstein_upper(0.5, 0.04, 1001, 0.05), 4)
        0.5225
    """
    mean = unit("bernstein_upper", "mean", mean)
    half = probability("bernstein_upper", "delta", delta) / 2
    s = np.asarray(deviation_upper(var, n, half))
    per = -np.log(half) / np.asarray(n, float)
    return plain(np.minimum(1.0, mean + np.sqrt(2 * per) * s + per / 3))


def _terms(where: str, var: Values, n: Values, delta: Values) -> tuple[np.ndarray, np.ndarray]:
    n = whole(where, "n", n, least=2)
    t = -np.log(probability(where, "delta", delta)) / (n - 1)
    return at_least(where, "var", var, 0), t

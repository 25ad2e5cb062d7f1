"""Clopper-Pearson: the bound for a fixed predictor and a count of errors."""

import numpy as np
from scipy import special

from bnkit.core.bounds.domain import Values, plain, probability, unit, whole
from bnkit.core.errors import CertificateError

_STEPS = 60


def binomial_p_value(k: Values, n: Values, p: Values) -> Values:
    """`P(Bin(n, p) <= k)`: how likely so few errors are if the risk is p (statement 2).

    Args:
        k: Errors, 0 to n.
        n: Independent examples.
        p: Risk, in [0, 1].

    Returns:
        A probability.

    Example:
        >>> from bnkit.core.bounds import binomial_p_value
        >>> binomial_p_value(1, 2, 0.5)
        0.75
    """
    k, n = _counts("binomial_p_value", k, n)
    p = unit("binomial_p_value", "p", p)
    return plain(_tail(*np.broadcast_arrays(k, n, p)))


def clopper_pearson(k: Values, n: Values, delta: Values) -> Values:
    """Upper bound of a risk from k errors in n examples (certificates page, statement 2).

    A predictor fixed before the examples were drawn has risk at most this, with probability at
    least `1 - delta`: `R <= Beta.isf(delta; k + 1, n - k)`. No bound that grows with k is smaller
    for any k (statement 3). One of J predictors chosen by these examples needs `delta / J`.

    Args:
        k: Errors, 0 to n.
        n: Independent examples.
        delta: Probability with which the bound may fail.

    Returns:
        A number in (0, 1]; 1 where every example was an error.

    Example:
        >>> from bnkit.core.bounds import clopper_pearson
        >>> round(clopper_pearson(17, 700, 0.05), 4), round(clopper_pearson(0, 10, 0.05), 6)
        (0.0362, 0.258866)
        >>> clopper_pearson(10, 10, 0.05)
        1.0
    """
    k, n = _counts("clopper_pearson", k, n)
    k, n, delta = np.broadcast_arrays(k, n, probability("clopper_pearson", "delta", delta))
    found = special.betainccinv(k + 1, np.maximum(n - k, 1), delta)
    return plain(np.where(k == n, 1.0, _not_below(k, n, delta, found)))


def clopper_pearson_lower(k: Values, n: Values, delta: Values) -> Values:
    """Lower bound of a risk from k errors in n examples (certificates page, statement 2).

    With probability at least `1 - delta` the risk is at least this: one minus the upper bound of
    the share of correct answers.

    Args:
        k: Errors, 0 to n.
        n: Independent examples.
        delta: Probability with which the bound may fail.

    Returns:
        A number in [0, 1).

    Example:
        >>> from bnkit.core.bounds import clopper_pearson_lower
        >>> round(clopper_pearson_lower(10, 10, 0.05), 6)
        0.741134
    """
    k, n = _counts("clopper_pearson_lower", k, n)
    k, n, delta = np.broadcast_arrays(k, n, probability("clopper_pearson_lower", "delta", delta))
    # directly, not as 1 - upper: a small bound keeps its digits
    found = special.betaincinv(np.maximum(k, 1), n - k + 1, delta)
    for step in range(_STEPS):
        above = special.betainc(np.maximum(k, 1), n - k + 1, found) > delta * (1 + 1e-9)
        if not bool(np.any(above & (k > 0))):
            break
        found = np.where(above, found * (1 - min(1e-13 * 2.0**step, 0.5)), found)
    return plain(np.where(k == 0, 0.0, np.nextafter(found, 0)))


def _counts(where: str, k: Values, n: Values) -> tuple[np.ndarray, np.ndarray]:
    k, n = np.broadcast_arrays(whole(where, "k", k, least=0), whole(where, "n", n))
    if not bool(np.all(k <= n)):
        msg = f"{where}: expected at most n errors, got k = {k.max():g} of n = {n.min():g}."
        raise CertificateError(msg)
    return k, n


def _tail(k: np.ndarray, n: np.ndarray, p: np.ndarray) -> np.ndarray:
    tail = special.betaincc(k + 1, np.maximum(n - k, 1), p)
    return np.where(k == n, 1.0, tail)


def _not_below(k: np.ndarray, n: np.ndarray, delta: np.ndarray, p: np.ndarray) -> np.ndarray:
    """`p`, raised until the tail at it is no larger than delta: an inverse may end short."""
    p = np.nextafter(p + 1e-13 * p * (1 - p), 2)
    for step in range(_STEPS):
        short = (_tail(k, n, np.minimum(p, 1)) > delta * (1 + 1e-9)) & (p < 1)
        if not bool(np.any(short)):
            break
        p = np.where(short, p + np.minimum(p, 1) * 1e-13 * 2.0**step, p)
    return np.minimum(p, 1.0)

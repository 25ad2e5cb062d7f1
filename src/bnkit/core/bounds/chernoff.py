"""Hoeffding's bounds: for losses anywhere in [0, 1] that need not have one distribution."""

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, plain, probability, unit, whole
from bnkit.core.bounds.kl import kl_inverse, kl_inverse_lower


def chernoff(loss: Values, n: Values, delta: Values) -> Values:
    """Upper bound of a mean by Chernoff's method (certificates page, statement 4).

    n independent losses in [0, 1], with expectations that may differ, have an average expectation
    of at most `kl_inverse(loss, log(1 / delta) / n)` with probability at least `1 - delta`
    (Hoeffding 1963, theorem 1).

    Args:
        loss: Mean of the observed losses.
        n: Independent losses.
        delta: Probability with which the bound may fail.

    Returns:
        A number in [loss, 1].

    Example:
        >>> from bnkit.core.bounds import chernoff
        >>> round(chernoff(0.024, 700, 0.05), 4)
        0.041
    """
    return kl_inverse(unit("chernoff", "loss", loss), _nats("chernoff", n, delta))


def chernoff_lower(loss: Values, n: Values, delta: Values) -> Values:
    """Lower bound of a mean by Chernoff's method (certificates page, statement 4).

    Args:
        loss: Mean of the observed losses.
        n: Independent losses.
        delta: Probability with which the bound may fail.

    Returns:
        A number in [0, loss].

    Example:
        >>> from bnkit.core.bounds import chernoff_lower
        >>> round(chernoff_lower(0.976, 700, 0.05), 4)
        0.959
    """
    return kl_inverse_lower(unit("chernoff_lower", "loss", loss), _nats("chernoff_lower", n, delta))


def hoeffding(loss: Values, n: Values, delta: Values) -> Values:
    """Upper bound of a mean, `loss + sqrt(log(1 / delta) / (2 n))` (statement 4).

    Wider than `chernoff`, which it follows from by Pinsker's inequality. It is the one that
    takes an effective sample size in the place of n (statement 22).

    Args:
        loss: Mean of the observed losses.
        n: Independent losses; need not be whole.
        delta: Probability with which the bound may fail.

    Returns:
        At most 1.

    Example:
        >>> from bnkit.core.bounds import hoeffding
        >>> round(hoeffding(0.024, 700, 0.05), 4)
        0.0703
    """
    loss = unit("hoeffding", "loss", loss)
    delta = probability("hoeffding", "delta", delta)
    n = at_least("hoeffding", "n", n, 0, strict=True)
    return plain(np.minimum(1.0, loss + np.sqrt(-np.log(delta) / (2 * n))))


def _nats(where: str, n: Values, delta: Values) -> np.ndarray:
    return -np.log(probability(where, "delta", delta)) / whole(where, "n", n)

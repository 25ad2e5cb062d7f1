"""Predict, then learn: a bound of the mean risk of all predictors, valid at any time."""

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, probability, whole
from bnkit.core.bounds.mixture import mixture_root
from bnkit.core.bounds.rates import Rates
from bnkit.core.errors import CertificateError


def prequential(total: Values, n: Values, delta: Values, rates: Rates | None = None) -> Values:
    """Upper bound of the mean risk of n predictors, each used once (statement 13).

    Predictor t depends on the examples before t only, its batch norm statistics included. With
    probability at least `1 - delta`, for all n at once, the mean of the risks
    `R_t = E[loss_t | past]` is below the mixture's root at `log(1 / delta)`. Nothing need be
    identically distributed, and nothing is said about the last predictor alone.

    Args:
        total: Sum of the n losses so far, each in [0, 1].
        n: Examples so far.
        delta: Probability with which the bound may fail at any time.
        rates: Fixed before the first example; `Rates.anytime()` by default, `Rates.for_size(n)`
            where the number of examples is known beforehand.

    Returns:
        A number in (0, 1].

    Raises:
        CertificateError: More loss than examples, or an argument out of range.

    Example:
        >>> from bnkit.core.bounds import Rates, prequential
        >>> round(prequential(30, 300, 0.05), 4)
        0.1689
        >>> round(prequential(30, 300, 0.05, Rates.for_size(300)), 4)
        0.1556
    """
    total, n = np.broadcast_arrays(
        at_least("prequential", "total", total, 0), whole("prequential", "n", n)
    )
    if not bool(np.all(total <= n)):
        msg = (
            f"prequential: expected losses in [0, 1], got a sum of {total.max():g} in {n.min():g}."
        )
        raise CertificateError(msg)
    nats = -np.log(probability("prequential", "delta", delta))
    return mixture_root(total, n, nats, rates or Rates.anytime())

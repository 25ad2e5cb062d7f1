"""Catoni's PAC-Bayes bound, with its rate fixed beforehand, and its mixture over rates."""

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, plain, probability, unit, whole
from bnkit.core.bounds.mixture import mixture_root
from bnkit.core.bounds.rates import Rates


def catoni(
    loss: Values, n: Values, delta: Values, rate: Values, *, divergence: Values = 0.0
) -> Values:
    """Upper bound of the risk of a posterior (certificates page, statement 8).

    `R(Q) <= (1 - exp(-C loss - (divergence + log(1 / delta)) / n)) / (1 - exp(-C))` for all
    posteriors Q at once, with probability at least `1 - delta` (Catoni 2007, theorem 1.2.6). The
    rate C and the prior are fixed without these examples.

    Args:
        loss: Expected mean loss of the posterior on the examples, in [0, 1].
        n: Independent examples.
        delta: Probability with which the bound may fail.
        rate: C; see `catoni_rate`.
        divergence: `KL(Q || P)` in nats, at least 0.

    Returns:
        A number in [0, 1].

    Example:
        >>> from bnkit.core.bounds import catoni, catoni_rate
        >>> round(catoni(0.024, 700, 0.05, catoni_rate(0.024, 700, 0.05)), 4)
        0.041
    """
    loss, n = unit("catoni", "loss", loss), whole("catoni", "n", n)
    c = at_least("catoni", "rate", rate, 0, strict=True)
    nats = at_least("catoni", "divergence", divergence, 0) - np.log(
        probability("catoni", "delta", delta)
    )
    return plain(np.minimum(1.0, np.expm1(-c * loss - nats / n) / np.expm1(-c)))


def catoni_mixture(
    loss: Values, n: Values, delta: Values, rates: Rates, *, divergence: Values = 0.0
) -> Values:
    """Upper bound of the risk of a posterior by several rates (certificates page, statement 9).

    With probability at least `1 - delta`, for all posteriors at once, R(Q) is below the risk
    against which the mixture wins `exp(divergence) / delta`. Never worse than the smallest of
    `catoni` at `delta * weight` (certificates page, statement 9).

    Args:
        loss: Expected mean loss of the posterior on the examples, in [0, 1].
        n: Independent examples.
        delta: Probability with which the bound may fail.
        rates: Fixed without these examples.
        divergence: `KL(Q || P)` in nats, at least 0.

    Returns:
        A number in (0, 1].

    Example:
        >>> from bnkit.core.bounds import Rates, catoni_mixture
        >>> round(catoni_mixture(0.024, 700, 0.05, Rates.for_size(700)), 4)
        0.044
    """
    loss, n = unit("catoni_mixture", "loss", loss), whole("catoni_mixture", "n", n)
    nats = at_least("catoni_mixture", "divergence", divergence, 0) - np.log(
        probability("catoni_mixture", "delta", delta)
    )
    return mixture_root(loss * n, n, nats, rates)

"""What small training batches do to the gain of a batch norm, under a Gaussian law."""

import numpy as np
from scipy.special import gammaln

from bnkit.core.bounds.domain import Values, plain, whole


def fresh_gain(batch: Values) -> Values:
    """`E[sd / sd_B]` for Gaussian values and batches of B (certificates page, statement 23).

    `sqrt(B / 2) Gamma((B - 2) / 2) / Gamma((B - 1) / 2)`, with the batch variance divided by B:
    how much larger, on average, a value that is *not* in the batch comes out when the batch
    normalizes it than when the population does. This is the factor of variance adjustment: dividing
    by `sd / fresh_gain(B)` gives the same mean gain.

    Args:
        batch: Values B in a batch, at least 3; at 2 the expectation is infinite.

    Returns:
        A number above 1, falling to 1 as B grows.

    Example:
        >>> from bnkit.core.bounds import fresh_gain
        >>> [round(fresh_gain(b), 3) for b in (4, 8, 16, 64)]
        [1.596, 1.204, 1.088, 1.02]
    """
    b = whole("fresh_gain", "batch", batch, least=3)
    return plain(np.exp(np.log(b / 2) / 2 + gammaln((b - 2) / 2) - gammaln((b - 1) / 2)))


def own_gain(batch: Values) -> Values:
    """`E[sd_B / sd]` for Gaussian values and batches of B (certificates page, statement 23).

    `sqrt(2 / B) Gamma(B / 2) / Gamma((B - 1) / 2)`: the slope of the regression of a normalized
    value on the value, and the mean derivative, for a value that *is* in the batch, as all are
    in training. It equals `(B - 2) / B` times `fresh_gain(B)`.

    Args:
        batch: Values B in a batch, at least 2.

    Returns:
        A number below 1, growing to 1 with B.

    Example:
        >>> from bnkit.core.bounds import own_gain
        >>> [round(own_gain(b), 3) for b in (4, 8, 16, 64)]
        [0.798, 0.903, 0.952, 0.988]
    """
    b = whole("own_gain", "batch", batch, least=2)
    return plain(np.exp(np.log(2 / b) / 2 + gammaln(b / 2) - gammaln((b - 1) / 2)))

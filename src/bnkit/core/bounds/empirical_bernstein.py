"""Empirical-Bernstein sets for bounded means: closed form, in one pass."""

import numpy as np

from bnkit.core.bounds.bets import Sample, plans, sample
from bnkit.core.bounds.domain import Values, plain

_CLIP = 0.5


def empirical_bernstein_interval(
    x: Values, delta: Values, *, mean_guess: Values = 0.5, var_guess: Values = 0.25
) -> tuple[Values, Values]:
    """Two-sided confidence set for the mean of values in [0, 1] (certificates page, statement 15).

    `(sum b_t x_t -+ (log(2 / delta) + sum (-log(1 - b_t) - b_t) (x_t - m_t)**2)) / sum b_t` with
    bets b_t < 1 and centres m_t that depend on the past only (Waudby-Smith & Ramdas 2024, theorem
    2, by Fan's inequality).

    Args:
        x: Values in [0, 1], shape `(n,)` or `(n, c)`; one row for one independent unit.
        delta: Probability of failure, for each channel.
        mean_guess: Guess of the mean, from other data; decides the width, never the validity.
        var_guess: Guess of the variance, likewise.

    Returns:
        Lower and upper end, numbers or arrays of shape `(c,)`.

    Example:
        >>> import numpy as np
        >>> from bnkit.core.bounds import empirical_bernstein_interval
        >>> x = np.random.default_rng(0).beta(2, 2, 1000)
        >>> [round(end, 2) for end in empirical_bernstein_interval(x, 0.05)]
        [0.5, 0.54]
    """
    given = sample("empirical_bernstein_interval", x, delta, mean_guess, var_guess)
    weight, value, slack = _sums(given)
    slack = slack - np.log(given.delta / 2)
    lower = np.maximum(0.0, (value - slack) / weight)
    upper = np.minimum(1.0, (value + slack) / weight)
    if np.ndim(x) == 1:
        return plain(lower[0]), plain(upper[0])
    return lower, upper


def _sums(given: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weight, value, slack = (np.zeros(given.x.shape[1]) for _ in range(3))
    for x, center, bet in plans(given):
        b = np.minimum(bet, _CLIP)
        weight += len(x) * b
        value += b * x.sum(axis=0)
        slack += (-np.log1p(-b) - b) * np.square(x - center).sum(axis=0)
    return weight, value, slack

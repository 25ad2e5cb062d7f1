"""Confidence sets for bounded means by betting: who wins too much has refuted the mean."""

import numpy as np

from bnkit.core.bounds.bets import Sample, plans, sample
from bnkit.core.bounds.domain import Values, plain

_CLIP = 0.75
_STEPS = 40
_CLOSE = 1e-7  # the safe end of so narrow a bracket is returned


def betting_interval(
    x: Values, delta: Values, *, mean_guess: Values = 0.5, var_guess: Values = 0.25
) -> tuple[Values, Values]:
    """Two-sided confidence set for the mean of values in [0, 1] (certificates page, statement 14).

    With probability at least `1 - delta` the conditional mean of the values, if it is the same
    for all of them, lies between the two ends. One side: use `2 * delta` and one of the ends.
    Half of delta goes to each side (Waudby-Smith & Ramdas 2024, theorem 3).

    Args:
        x: Values in [0, 1], shape `(n,)` or `(n, c)`; one row for one independent unit.
        delta: Probability of failure, for each channel.
        mean_guess: Guess of the mean, from other data; decides the width, never the validity.
        var_guess: Guess of the variance, likewise.

    Returns:
        Lower and upper end, numbers or arrays of shape `(c,)`.

    Example:
        >>> import numpy as np
        >>> from bnkit.core.bounds import betting_interval
        >>> x = np.random.default_rng(0).beta(2, 2, 1000)
        >>> [round(end, 2) for end in betting_interval(x, 0.05)]
        [0.5, 0.54]
    """
    given = sample("betting_interval", x, delta, mean_guess, var_guess)
    lower, upper = _lower(given), 1 - _lower(given.mirrored())
    if np.ndim(x) == 1:
        return plain(lower[0]), plain(upper[0])
    return lower, upper


def _lower(given: Sample) -> np.ndarray:
    """Largest mean found to be refuted from below, as the lower end of a bracket."""
    channels = given.x.shape[1]
    blocks = [(block.x, block.bet) for block in plans(given)]
    target = -np.log(given.delta / 2) * (1 + 1e-12) + 1e-12
    low, high = np.zeros(channels), np.ones(channels)
    refutable = _log_capital(blocks, low) >= target
    for _ in range(_STEPS):
        middle = (low + high) / 2
        above = _log_capital(blocks, middle) >= target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
        if bool(np.all(high - low <= _CLOSE)):
            break
    return np.where(refutable, low, 0.0)


def _log_capital(blocks: list[tuple[np.ndarray, np.ndarray]], mean: np.ndarray) -> np.ndarray:
    """`sum log(1 + bet (x - mean))`, which falls as the mean grows."""
    found = np.zeros(mean.shape)
    with np.errstate(divide="ignore"):
        most = _CLIP / mean
    for x, bet in blocks:
        stake = np.minimum(bet, most)
        found += np.log(np.prod(x * stake + (1 - stake * mean), axis=0))
    return found

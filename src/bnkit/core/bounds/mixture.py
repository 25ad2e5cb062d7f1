"""The mixture over rates, as a wealth that cannot grow unless a risk is exceeded."""

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, plain, unit
from bnkit.core.bounds.rates import Rates

_HALVINGS = 80


def log_wealth(total: Values, n: Values, risk: Values, rates: Rates) -> Values:
    """Logarithm of the wealth of who bets against a risk (certificates page, statement 9).

    `log sum_j w_j exp(-C_j total - n log(1 - (1 - exp(-C_j)) risk))`. If losses in [0, 1] have
    the mean conditional expectation `risk`, its exponential is at most a nonnegative
    supermartingale that starts at 1.

    Args:
        total: Sum of the n losses.
        n: How many.
        risk: The risk that is doubted, in [0, 1].
        rates: Fixed before the losses were seen.

    Returns:
        Nats; grows with the risk and falls with the losses.

    Example:
        >>> from bnkit.core.bounds import Rates, log_wealth
        >>> round(log_wealth(5, 100, 0.2, Rates.one(1.0)), 3)
        8.516
    """
    total = at_least("log_wealth", "total", total, 0)
    n, risk = at_least("log_wealth", "n", n, 0), unit("log_wealth", "risk", risk)
    return plain(_wealth(total, n, risk, rates))


def mixture_root(total: Values, n: Values, nats: Values, rates: Rates) -> Values:
    """Smallest risk against which the wealth reaches `exp(nats)` (certificates page, statement 9).

    Found by bisection, of which the upper end is returned.

    Args:
        total: Sum of the n losses.
        n: How many, at least 1.
        nats: `log(1 / delta)` and what else has to be paid.
        rates: Fixed before the losses were seen.

    Returns:
        A number in (0, 1]; 1 where no risk below it is refuted.

    Example:
        >>> from bnkit.core.bounds import Rates, mixture_root
        >>> round(mixture_root(5, 100, 2.995732, Rates.one(1.0)), 5)
        0.12157
    """
    total, n, nats = np.broadcast_arrays(
        at_least("mixture_root", "total", total, 0),
        at_least("mixture_root", "n", n, 1),
        at_least("mixture_root", "nats", nats, 0),
    )
    # the two terms of the exponent cancel; this is more than what rounding leaves of them
    target = nats + 1e-12 * (1 + nats) + 1e-15 * n
    low, high = np.zeros(total.shape), np.ones(total.shape)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = _wealth(total, n, middle, rates) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
        if bool(np.all(high - low <= 2e-16 * high)):
            break
    return plain(high)


def _wealth(total: np.ndarray, n: np.ndarray, risk: np.ndarray, rates: Rates) -> np.ndarray:
    c, w = np.asarray(rates.values), np.asarray(rates.weights)
    total, n, risk = (np.asarray(v)[..., None] for v in (total, n, risk))
    paid = -c * total - n * np.log1p(np.expm1(-c) * risk)
    return log_sum(paid + np.log(w), axis=-1)


def log_sum(x: np.ndarray, axis: int) -> np.ndarray:
    """`log sum exp`, about the largest; SciPy's costs ten times as much for eight terms."""
    most = x.max(axis=axis)
    return most + np.log(np.exp(x - np.expand_dims(most, axis)).sum(axis=axis))

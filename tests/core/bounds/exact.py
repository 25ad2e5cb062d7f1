"""Independent arithmetic: exact sums over every outcome, and mpmath in fifty digits."""

from itertools import product
from math import comb

import mpmath
import numpy as np

mpmath.mp.dps = 50


def binomial_tail(k, n, p):
    """P(Bin(n, p) <= k), summed."""
    p = mpmath.mpf(p)
    return mpmath.fsum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


def entropy(q, p):
    """kl(q || p) in fifty digits."""
    q, p = mpmath.mpf(float(q)), mpmath.mpf(float(p))

    def term(a, b):
        if a == 0:
            return mpmath.mpf(0)
        return mpmath.inf if b == 0 else a * mpmath.log(a / b)

    return term(q, p) + term(1 - q, 1 - p)


def chance(values, weights, n, event):
    """Probability of an event over n independent draws, by running through all outcomes.

    `event` takes an array (n, outcomes), and gives one truth value for each.
    """
    outcomes = np.array(list(product(range(len(values)), repeat=n)))
    x = np.asarray(values, float)[outcomes]
    w = np.asarray(weights, float)[outcomes].prod(axis=1)
    return float(w[event(x.T)].sum())

"""Bets on sums of powers: a confidence set of a mean that is streamed and merged."""

from typing import NamedTuple

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, probability, unit, whole
from bnkit.core.bounds.mixture import log_sum
from bnkit.core.errors import CertificateError

POWERS = 4
LARGEST_BET = 0.6
# (log(1 + y) - y + y**2 / 2 - y**3 / 3) / y**4 at y = -0.6: smallest over the bets that are made
_REST = float((np.log1p(-0.6) + 0.6 + 0.6**2 / 2 + 0.6**3 / 3) / 0.6**4)
_STEPS = 40


class PowerSums(NamedTuple):
    """Sums of the first four powers of values in [0, 1] about a fixed center.

    A commutative monoid under `merge`, with no values as identity: what streams and processes
    add up.

    Attributes:
        count: Values per channel.
        center: Fixed before the values were seen, shape `(c,)`, in [0, 1].
        sums: `sum (x - center)**p` for p = 1 to 4, shape `(4, c)`, float64.
    """

    count: Values
    center: np.ndarray
    sums: np.ndarray

    @classmethod
    def empty(cls, center: Values, channels: int) -> "PowerSums":
        """No values yet.

        Args:
            center: Where the values are expected, in [0, 1], from other data.
            channels: How many.

        Returns:
            The identity of `merge`.
        """
        c = np.broadcast_to(unit("PowerSums", "center", center), (channels,))
        return cls(0, c, np.zeros((POWERS, channels)))

    def add(self, x: np.ndarray) -> "PowerSums":
        """With more values.

        Args:
            x: Values in [0, 1], shape `(n, c)`.

        Returns:
            The sums of both.

        Raises:
            CertificateError: Values outside [0, 1], or of another shape.
        """
        if x.ndim != 2 or x.shape[1] != len(self.center):
            msg = f"PowerSums.add: expected values (n, {len(self.center)}), got {x.shape}."
            raise CertificateError(msg)
        if len(x) and not (x.min() >= 0 and x.max() <= 1):
            msg = "PowerSums.add: expected values in [0, 1]. Clip and rescale them first."
            raise CertificateError(msg)
        d = x - self.center
        square = d * d
        sums = (d, square, square * d, square * square)
        return self._replace(
            count=self.count + len(x), sums=self.sums + np.stack([s.sum(axis=0) for s in sums])
        )

    def merge(self, other: "PowerSums") -> "PowerSums":
        """The sums of two streams.

        Args:
            other: With the same center.

        Returns:
            What `add` gives for all values.

        Raises:
            CertificateError: The centers differ.
        """
        if not np.array_equal(self.center, other.center):
            msg = "PowerSums.merge: expected one center, got two. Fix it before the streams begin."
            raise CertificateError(msg)
        return self._replace(count=self.count + other.count, sums=self.sums + other.sums)


def power_sums_interval(
    given: PowerSums, delta: Values, *, var_guess: Values, planned: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided confidence set for the means of values in [0, 1] (certificates page, statement 16).

    As `betting_interval`, with constant bets and `log(1 + y)` replaced by
    `y - y**2 / 2 + y**3 / 3 + h y**4`, which lies below it for `y >= -0.6`; so four sums say
    everything. Three bets are mixed, about the best one at the guessed variance.

    Args:
        given: Sums over the examples.
        delta: Probability of failure, for each channel.
        var_guess: Guess of the variance, from other data; decides the width, never the validity.
        planned: Examples planned beforehand; likewise.

    Returns:
        Lower and upper end, shape `(c,)`.

    Raises:
        CertificateError: No values.

    Example:
        >>> import numpy as np
        >>> from bnkit.core.bounds import PowerSums, power_sums_interval
        >>> x = np.random.default_rng(0).beta(2, 2, (1000, 1))
        >>> halves = [PowerSums.empty(0.5, 1).add(part) for part in (x[:500], x[500:])]
        >>> both = halves[0].merge(halves[1])
        >>> ends = power_sums_interval(both, 0.05, var_guess=0.05, planned=1000)
        >>> [round(float(end[0]), 2) for end in ends]
        [0.5, 0.54]
    """
    if given.count < 1:
        msg = "power_sums_interval: expected at least one value, got none. Give it some data."
        raise CertificateError(msg)
    delta = probability("power_sums_interval", "delta", delta)
    var = at_least("power_sums_interval", "var_guess", var_guess, 0, strict=True)
    n = whole("power_sums_interval", "planned", planned)
    nats = -np.log(delta / 2)
    best = np.broadcast_to(np.sqrt(2 * nats / (n * var)), given.center.shape)
    bets = np.minimum(best * np.array([[0.5], [1.0], [2.0]]), LARGEST_BET)
    up = _lower(given, bets, nats)
    odd = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    down = _lower(given._replace(center=1 - given.center, sums=odd * given.sums), bets, nats)
    return up, 1 - down


def _lower(given: PowerSums, bets: np.ndarray, nats: np.ndarray) -> np.ndarray:
    target = nats + 1e-12 * (1 + nats) + 1e-14 * given.count
    low, high = np.zeros(given.center.shape), np.ones(given.center.shape)
    refutable = _log_capital(given, bets, low) >= target
    for _ in range(_STEPS):
        middle = (low + high) / 2
        above = _log_capital(given, bets, middle) >= target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(refutable, low, 0.0)


def _log_capital(given: PowerSums, bets: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Mixture of the bets against `mean`; falls as the mean grows."""
    n, (a, b, c, d) = given.count, given.sums
    s = given.center - mean  # from sums about the center to sums about the doubted mean
    first = a + n * s
    second = b + 2 * s * a + n * s**2
    third = c + 3 * s * b + 3 * s**2 * a + n * s**3
    fourth = d + 4 * s * c + 6 * s**2 * b + 4 * s**3 * a + n * s**4
    paid = bets * first - bets**2 * second / 2 + bets**3 * third / 3 + _REST * bets**4 * fourth
    return log_sum(paid + np.log([[0.25], [0.5], [0.25]]), axis=0)

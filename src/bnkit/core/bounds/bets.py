"""Bets that depend on the past only: what betting and empirical-Bernstein sets share."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, probability, unit
from bnkit.core.errors import CertificateError

BLOCK = 32
LARGEST = 100.0


class Sample(NamedTuple):
    """Values in [0, 1], with what was guessed about them beforehand.

    Attributes:
        x: Shape `(n, c)`, float64, unit by unit in the order of drawing.
        delta: Probability of failure, shape `(c,)` or one number.
        mean_guess: Guess of the mean, from other data.
        var_guess: Guess of the variance, from other data.
    """

    x: np.ndarray
    delta: np.ndarray
    mean_guess: np.ndarray
    var_guess: np.ndarray

    def mirrored(self) -> "Sample":
        """The same of `1 - x`."""
        return self._replace(x=1 - self.x, mean_guess=1 - self.mean_guess)


class Plan(NamedTuple):
    """One block of examples with what was known before it.

    Attributes:
        x: The examples of the block, shape `(b, c)`.
        center: Estimate of the mean, shape `(c,)`.
        bet: Best bet at the estimated variance, shape `(c,)`.
    """

    x: np.ndarray
    center: np.ndarray
    bet: np.ndarray


def sample(where: str, x: Values, delta: Values, mean_guess: Values, var_guess: Values) -> Sample:
    """Check and shape what a confidence set is made of.

    Args:
        where: Who asks.
        x: Values in [0, 1], shape `(n,)` or `(n, c)`.
        delta: Probability of failure of the set.
        mean_guess: Guess of the mean.
        var_guess: Guess of the variance.

    Returns:
        The sample, always with two axes.

    Raises:
        CertificateError: No values, or values outside [0, 1].
    """
    values = unit(where, "x", x)
    if values.ndim not in {1, 2} or not len(values):
        msg = f"{where}: expected values of shape (n,) or (n, c) with n >= 1, got {values.shape}."
        raise CertificateError(msg)
    return Sample(
        values.reshape(len(values), -1),
        probability(where, "delta", delta),
        unit(where, "mean_guess", mean_guess),
        at_least(where, "var_guess", var_guess, 0, strict=True),
    )


def plans(given: Sample) -> Iterator[Plan]:
    """Blocks in order, each with a mean, and a bet made of a variance, of the blocks before it.

    The bet is `sqrt(2 log(2 / delta) / (n var))`, the best constant one for n examples of that
    variance (as Waudby-Smith & Ramdas 2024 do).

    Args:
        given: The sample.

    Yields:
        The blocks, each of at most 32 examples.
    """
    n, channels = given.x.shape
    seen, total = 1.0, np.broadcast_to(given.mean_guess, (channels,)).copy()
    square = np.broadcast_to(given.var_guess, (channels,)).copy()
    for start in range(0, n, BLOCK):
        x = given.x[start : start + BLOCK]
        center = total / seen
        bet = np.minimum(np.sqrt(-2 * np.log(given.delta / 2) / (n * square / seen)), LARGEST)
        yield Plan(x, center, bet)
        total += x.sum(axis=0)
        # about the mean known before: never too small, and predictable all the same
        square += np.square(x - center).sum(axis=0)
        seen += len(x)

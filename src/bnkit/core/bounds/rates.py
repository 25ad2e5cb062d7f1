"""The rates C at which Catoni's inequality is used: fixed before the data is seen."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, plain, probability, unit, whole
from bnkit.core.bounds.kl import kl_inverse
from bnkit.core.errors import CertificateError

_LARGEST = 50.0


@dataclass(frozen=True)
class Rates:
    """A few rates with weights: the price is paid for their mixture, not for each.

    Attributes:
        values: Positive and finite.
        weights: Positive, with sum 1.
    """

    values: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for c in self.values:
            at_least("Rates", "values", c, 0, strict=True)
        good = len(self.values) == len(self.weights) > 0 and all(w > 0 for w in self.weights)
        finite = all(np.isfinite(self.values))
        if not (good and finite and abs(sum(self.weights) - 1) < 1e-9):
            msg = (
                "Rates: expected finite rates, each with a positive weight, and weights that sum "
                f"to 1, got values {self.values} and weights {self.weights}."
            )
            raise CertificateError(msg)

    @classmethod
    def one(cls, value: float) -> Self:
        """A single rate."""
        return cls((value,), (1.0,))

    @classmethod
    def around(cls, value: float) -> Self:
        """A rate that was estimated elsewhere, its half and its double: at most log 2 nats more."""
        return cls((value / 2, value, 2 * value), (0.25, 0.5, 0.25))

    @classmethod
    def for_size(cls, n: int, delta: float = 0.05, count: int = 8) -> Self:
        """Every risk from one error in 2 n to one half, for a number of examples known beforehand.

        Args:
            n: Examples that will be used.
            delta: Probability with which the bound may fail.
            count: How many rates; they cost at most log(count) nats.

        Returns:
            Rates in geometric steps, all of one weight.
        """
        ends = catoni_rate(0.5, n, delta), catoni_rate(0.0, n, delta)
        values = np.geomspace(*ends, int(whole("Rates.for_size", "count", count)))
        return cls(tuple(values.tolist()), (1 / count,) * count)

    @classmethod
    def anytime(cls, steps: int = 24) -> Self:
        """For a number of examples that nobody knows yet: 4, then the half each time.

        Args:
            steps: How many rates. Weights fall like `1 / ((j + 1) (j + 2))`.

        Returns:
            The rates; the last takes what weight is left.
        """
        count = int(whole("Rates.anytime", "steps", steps))
        values = tuple(4 * 2.0**-j for j in range(count))
        weights = [1 / ((j + 1) * (j + 2)) for j in range(count - 1)]
        return cls(values, (*weights, 1 - sum(weights)))


def catoni_rate(loss: Values, n: Values, delta: Values, *, divergence: Values = 0.0) -> Values:
    """The rate at which Catoni's bound is Chernoff's, if the loss is what was guessed.

    `C = log(p (1 - q) / (q (1 - p)))` with `p = kl_inverse(q, (divergence + log(1/delta)) / n)`
    (certificates page, statement 8). The guess must come from other data than the bound will use.

    Args:
        loss: Guess q of the mean loss. It is kept within `[1 / (2 n), 1 - 1 / (2 n)]`.
        n: Examples that the bound will use.
        delta: Probability with which the bound may fail.
        divergence: Guess of the divergence, in nats.

    Returns:
        A positive rate, at most 50.

    Example:
        >>> from bnkit.core.bounds import catoni_rate
        >>> round(catoni_rate(0.024, 700, 0.05), 3)
        0.552
    """
    n = whole("catoni_rate", "n", n)
    delta = probability("catoni_rate", "delta", delta)
    q = np.clip(unit("catoni_rate", "loss", loss), 0.5 / n, 1 - 0.5 / n)
    nats = at_least("catoni_rate", "divergence", divergence, 0) - np.log(delta)
    p = np.asarray(kl_inverse(q, nats / n))
    with np.errstate(divide="ignore"):
        rate = np.log(p) - np.log1p(-p) - np.log(q) + np.log1p(-q)
    return plain(np.clip(rate, 1e-9, _LARGEST))

"""Simultaneous confidence sets for mean and variance of many channels, in one pass over data."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnkit.core.bounds import PowerSums, power_sums_interval, variance_interval
from bnkit.core.bounds.domain import probability, whole
from bnkit.core.errors import CertificateError

RANGE = 6.0  # standard deviations to which values are clipped, as the network has to do
# of a Gaussian within six deviations, seen as a share of the range
_VAR_OF_MEAN, _SQUARE, _VAR_OF_SQUARE = 1 / 144, 1 / 36, 2 / 36**2
_ROWS = 512  # a block stays in the cache


@dataclass(frozen=True)
class StatisticsSets:
    """Boxes that hold the population's statistics, all together with probability `1 - delta`.

    Attributes:
        mean_lower: Shape `(c,)`, as the others; in units of the channel.
        mean_upper: Of the mean.
        var_lower: Of the variance; at least 0.
        var_upper: Of the variance.
        count: Independent examples seen.
        delta: Probability that any set of any channel is wrong.
        clipped: Share of values that lay beyond the range, per channel.
    """

    mean_lower: np.ndarray
    mean_upper: np.ndarray
    var_lower: np.ndarray
    var_upper: np.ndarray
    count: int
    delta: float
    clipped: np.ndarray

    def contains(self, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        """Which channels hold these statistics.

        Args:
            mean: Shape `(c,)`.
            var: Shape `(c,)`.

        Returns:
            True where both lie inside.
        """
        of_mean = (self.mean_lower <= mean) & (mean <= self.mean_upper)
        return of_mean & (self.var_lower <= var) & (var <= self.var_upper)

    def hull(self, mean: np.ndarray, var: np.ndarray) -> "StatisticsSets":
        """The smallest box that holds the sealed statistics, too (certificates page, statement 21).

        Args:
            mean: Sealed means, shape `(c,)`.
            var: Sealed variances.

        Returns:
            The box through which decisions are propagated.
        """
        return replace(
            self,
            mean_lower=np.minimum(self.mean_lower, mean),
            mean_upper=np.maximum(self.mean_upper, mean),
            var_lower=np.minimum(self.var_lower, var),
            var_upper=np.maximum(self.var_upper, var),
        )


@dataclass(frozen=True)
class ChannelMoments:
    """What one pass keeps of the inputs of batch norms: four sums of powers, twice per channel.

    The unit is the example. Images enter by the mean of a channel over their positions, and by
    the mean of its square, so that a million pixels of a hundred images count as a hundred.

    Attributes:
        center: Where each channel is expected, fixed beforehand, shape `(c,)`.
        scale: Its standard deviation, fixed beforehand, shape `(c,)`, positive.
        first: Sums of the clipped value, as a share of the range.
        second: Sums of its square about the center, likewise.
        clipped: Values beyond the range, shape `(c,)`.
        positions: Per example; None before the first.

    Example:
        >>> import numpy as np
        >>> from bnkit.certify import ChannelMoments
        >>> x = np.random.default_rng(0).normal(3.0, 2.0, (8000, 1))
        >>> sets = ChannelMoments.empty(np.array([3.0]), np.array([2.0])).add(x).sets(0.05)
        >>> round(float(sets.mean_lower[0]), 2), round(float(sets.mean_upper[0]), 2)
        (2.93, 3.07)
    """

    center: np.ndarray
    scale: np.ndarray
    first: PowerSums
    second: PowerSums
    clipped: np.ndarray
    positions: int | None = None

    @classmethod
    def empty(cls, center: np.ndarray, scale: np.ndarray) -> "ChannelMoments":
        """Nothing seen yet.

        Args:
            center: From other data, such as the sealed running means.
            scale: From other data, such as the roots of the sealed variances.

        Returns:
            The identity of `merge`.

        Raises:
            CertificateError: Shapes that differ, or a scale that is not positive and finite.
        """
        c, s = np.asarray(center, np.float64), np.asarray(scale, np.float64)
        if c.ndim != 1 or c.shape != s.shape or not len(c):
            msg = f"ChannelMoments: expected center and scale (c,), got {c.shape} and {s.shape}."
            raise CertificateError(msg)
        bad = ~(np.isfinite(c) & np.isfinite(s) & (s > 0))
        if bad.any():
            channel = int(np.flatnonzero(bad)[0])
            msg = (
                f"ChannelMoments: expected a finite center and a positive scale, got "
                f"{c[channel]:g} and {s[channel]:g} in channel {channel}. A channel that never "
                "varies has nothing to certify: leave it out."
            )
            raise CertificateError(msg)
        n = len(c)
        sums = PowerSums.empty(0.5, n), PowerSums.empty(_SQUARE, n)
        return cls(c, s, *sums, np.zeros(n))

    @property
    def count(self) -> int:
        """Examples seen."""
        return int(self.first.count)

    def add(self, x: np.ndarray) -> "ChannelMoments":
        """With more examples.

        Args:
            x: Inputs of batch norms, shape `(n, c)` or `(n, c, *positions)`.

        Returns:
            What is known of both.

        Raises:
            CertificateError: Other channels or positions than before, or values not finite.
        """
        if x.ndim < 2 or x.shape[1] != len(self.center):
            msg = f"ChannelMoments: expected (n, {len(self.center)}, ...), got {x.shape}."
            raise CertificateError(msg)
        positions = int(np.prod(x.shape[2:], dtype=np.int64))
        if positions < 1 or self.positions not in {None, positions}:
            msg = (
                f"ChannelMoments: expected {self.positions or 'some'} positions in every example, "
                f"got {positions}. Images of several sizes have no common law of positions."
            )
            raise CertificateError(msg)
        first, second, clipped = self.first, self.second, self.clipped.copy()
        rows = max(1, _ROWS // positions)
        for start in range(0, len(x), rows):
            part = x[start : start + rows].reshape(-1, len(self.center), positions)
            value, square, beyond = self._units(part)
            first, second = first.add(value), second.add(square)
            clipped += beyond
        return replace(self, first=first, second=second, clipped=clipped, positions=positions)

    def _units(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value and square of each example in [0, 1], and how many were clipped per channel."""
        u = (part - self.center[:, None]) * (1 / (RANGE * self.scale))[:, None]
        if not np.isfinite(u).all():
            channel = int(np.flatnonzero(~np.isfinite(u).all(axis=(0, 2)))[0])
            msg = (
                f"ChannelMoments: expected finite values, got NaN or infinity in channel {channel}."
            )
            raise CertificateError(msg)
        beyond = (np.abs(u) > 1).sum(axis=(0, 2))
        u = np.clip(u, -1, 1)
        if u.shape[2] == 1:
            value, square = u[..., 0], np.square(u[..., 0])
        else:
            # a mean of equal numbers may round beyond them
            value = np.clip(u.mean(axis=2), -1, 1)
            square = np.clip(np.square(u).mean(axis=2), 0, 1)
        return (value + 1) / 2, square, beyond

    def merge(self, other: "ChannelMoments") -> "ChannelMoments":
        """What two streams know together.

        Args:
            other: With the same center, scale and positions.

        Returns:
            As if one had seen everything.

        Raises:
            CertificateError: They differ.
        """
        same = np.array_equal(self.center, other.center) and np.array_equal(self.scale, other.scale)
        if not same:
            msg = "ChannelMoments: expected one center and scale in both streams, got two."
            raise CertificateError(msg)
        known = {p for p in (self.positions, other.positions) if p is not None}
        if len(known) > 1:
            msg = f"ChannelMoments: expected one number of positions, got {sorted(known)}."
            raise CertificateError(msg)
        return replace(
            self,
            first=self.first.merge(other.first),
            second=self.second.merge(other.second),
            clipped=self.clipped + other.clipped,
            positions=next(iter(known), None),
        )

    def sets(
        self,
        delta: float,
        *,
        channels: int | None = None,
        planned: int | None = None,
        pilot: "ChannelMoments | None" = None,
    ) -> StatisticsSets:
        """Confidence sets for mean and variance of every channel (statements 16 and 20).

        Args:
            delta: Probability that any of the sets is wrong.
            channels: Channels of all layers that share the delta; by default these alone.
            planned: Examples planned; by default as many as there are, which must not have been
                decided by looking at them.
            pilot: Of other examples; guesses of the variances, for narrower sets.

        Returns:
            The boxes.

        Raises:
            CertificateError: No example yet, or fewer channels than there are.
        """
        if not self.count:
            msg = "ChannelMoments: expected at least one example, got none. Run some data through."
            raise CertificateError(msg)
        total = int(whole("ChannelMoments", "channels", channels or len(self.center)))
        if total < len(self.center):
            msg = f"ChannelMoments: expected channels >= {len(self.center)}, got {total}."
            raise CertificateError(msg)
        each = probability("ChannelMoments", "delta", delta) / (2 * total)
        options: dict[str, Any] = {"planned": planned or self.count}
        guesses = _guesses(pilot)
        value = power_sums_interval(self.first, each, var_guess=guesses[0], **options)
        square = power_sums_interval(self.second, each, var_guess=guesses[1], **options)
        mean = (2 * value[0] - 1, 2 * value[1] - 1)
        var = variance_interval(mean, square, 0.0)
        unit = RANGE * self.scale
        values = self.count * (self.positions or 1)
        return StatisticsSets(
            *(self.center + unit * end for end in mean),
            *(np.square(unit) * end for end in var),
            count=self.count,
            delta=float(delta),
            clipped=self.clipped / values,
        )


def _guesses(pilot: ChannelMoments | None) -> tuple[Any, Any]:
    """Variances of value and square: of a Gaussian, or of the pilot."""
    if pilot is None or pilot.count < 2:
        return _VAR_OF_MEAN, _VAR_OF_SQUARE
    found = (
        p.sums[1] / p.count - np.square(p.sums[0] / p.count) for p in (pilot.first, pilot.second)
    )
    return tuple(np.maximum(v, 1e-6) for v in found)  # pyright: ignore[reportReturnType]

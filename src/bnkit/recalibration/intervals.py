"""How far the estimates may be off, from how much the batches differ."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from bnkit.core import Moments
from bnkit.recalibration.side_by_side import Sides

CONFIDENCE = 0.95
# below this many batches their scatter says too little to stop by
ENOUGH = 8
_SUMS = ("s", "sd", "sdd", "su", "suu", "sdu")


@dataclass
class Replicates:
    """Sums over batches, from which the standard errors of mean and variance follow.

    Positions of an image, or steps of a sequence, are not independent of each other, so that
    their number says nothing about precision. Batches are, if the data is shuffled. With batch
    means `m_b`, variances `v_b` (divided by n) and counts `n_b`, the pooled mean is the ratio
    `sum n_b m_b / sum n_b`, and by linearization (Cochran 1977, Sampling Techniques, chapter 6)

    `se(mean)**2 = B / (B - 1) * sum n_b**2 (m_b - mean)**2 / (sum n_b)**2`,

    and the variance likewise with `q_b = v_b + (m_b - mean)**2` in the place of `m_b`. The sums
    are kept about the mean of the first batch, so that a large mean costs no digits.

    Attributes:
        batches: Batches that reached each channel.
        center: Mean of the first of them.
        s: Sum of `n_b**2`.
        sd: Sum of `n_b**2 d_b` with `d_b = m_b - center`.
        sdd: Sum of `n_b**2 d_b**2`.
        su: Sum of `n_b**2 u_b` with `u_b = v_b + d_b**2`.
        suu: Sum of `n_b**2 u_b**2`.
        sdu: Sum of `n_b**2 d_b u_b`.
    """

    batches: np.ndarray
    center: np.ndarray
    s: np.ndarray
    sd: np.ndarray
    sdd: np.ndarray
    su: np.ndarray
    suu: np.ndarray
    sdu: np.ndarray

    @classmethod
    def empty(cls, sides: Sides) -> Self:
        """No batch yet."""
        return cls(*(np.zeros(sides.total) for _ in range(8)))

    def add(self, batch: Moments) -> None:
        """One more batch, all layers side by side."""
        there = batch.count > 0
        mean = np.real(batch.mean)
        first = there & (self.batches == 0)
        self.center = np.where(first, mean, self.center)
        self.batches = self.batches + there
        n2 = np.square(batch.count)
        d = np.where(there, mean - self.center, 0.0)
        u = batch.m2 / np.maximum(batch.count, 1e-300) * there + np.square(d)
        for name, term in zip(_SUMS, (1.0, d, d * d, u, u * u, d * u), strict=True):
            setattr(self, name, getattr(self, name) + n2 * term)

    def squares(self, whole: Moments) -> tuple[np.ndarray, np.ndarray]:
        """The sums of squares in both standard errors, about the pooled mean and variance.

        Args:
            whole: The pooled moments, which may hold batches of other processes, too.

        Returns:
            `sum n_b**2 (m_b - mean)**2` and `sum n_b**2 (q_b - var)**2`, which processes add up.
        """
        shift = np.real(whole.mean) - self.center
        constant = np.square(shift) - whole.var()
        # q_b - var = u_b - 2 shift d_b + constant
        of_mean = self.sdd - 2 * shift * self.sd + np.square(shift) * self.s
        of_var = (
            self.suu
            + 4 * np.square(shift) * self.sdd
            + np.square(constant) * self.s
            - 4 * shift * self.sdu
            + 2 * constant * self.su
            - 4 * constant * shift * self.sd
        )
        return np.maximum(of_mean, 0), np.maximum(of_var, 0)


def half_widths(
    whole: Moments, batches: np.ndarray, squares: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Half widths of the 95 % confidence intervals of mean and variance.

    Args:
        whole: The pooled moments.
        batches: Batches per channel.
        squares: From `Replicates.squares`, over all processes.

    Returns:
        Student's quantile with `batches - 1` degrees of freedom times the standard error; infinite
        where there is one batch only.
    """
    from scipy.special import stdtrit

    enough = batches > 1
    b = np.where(enough, batches, 2)
    quantile = stdtrit(b - 1, (1 + CONFIDENCE) / 2)
    n = np.maximum(whole.count, 1e-300)
    return tuple(  # pyright: ignore[reportReturnType]
        np.where(enough, quantile * np.sqrt(b / (b - 1) * q) / n, np.inf) for q in squares
    )


def narrow(whole: Moments, replicates: Replicates, sides: Sides, tolerance: float) -> bool:
    """Whether the intervals are small enough in 9 of 10 channels of every layer.

    Args:
        whole: The pooled moments.
        replicates: What the standard errors follow from.
        sides: The places of the layers.
        tolerance: The mean may be off by this many standard deviations, the variance by this
            share of itself.

    Returns:
        False as long as there are fewer than 8 batches.
    """
    reached = replicates.batches > 0
    if not reached.any() or replicates.batches[reached].min() < ENOUGH:
        return False
    off_mean, off_var = half_widths(whole, replicates.batches, replicates.squares(whole))
    var = whole.var()
    worst = np.maximum(_share(off_mean, np.sqrt(var)), _share(off_var, var))
    layers = [part for part in sides.slices if reached[part].any()]
    return all(np.quantile(worst[part], 0.9) <= tolerance for part in layers)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, where nothing of nothing is nothing."""
    return np.divide(part, whole, out=np.where(part > 0, np.inf, 0.0), where=whole > 0)

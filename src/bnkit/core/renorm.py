"""Batch renormalization: the limits of its correction, its reference statistics and their update.

Ioffe (2017), *Batch Renormalization*, Algorithm 1: training normalizes with the batch and then
undoes what the batch differs by from a reference, `y = (xhat * r + d) * weight + bias`, with

    r = clip(stddev / reference stddev, rmin, rmax)
    d = clip((mean - reference mean) / reference stddev, -dmax, dmax)

and `stddev = sqrt(var + eps)`. `r` and `d` are constants for the gradient. Which reference, and
what inference reads, is a rule of its own; the two that exist are TensorFlow's:

- `"plain"` (1.15 and later, tf_keras, Keras 3.14 and later; the paper where both weights are
  equal): exponential averages of mean and standard deviation, from 0 and 1; inference reads
  `running_var = max(running_stddev**2 - eps, 0)`.
- `"debiased"` (up to 1.14): averages that start at nothing, divided by the sum of their weights;
  the reference fills the weight that is missing with the batch itself, so that the first step
  has r = 1 and d = 0. Inference reads an average of these averages.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from array_api_compat import array_namespace

from bnkit.core.errors import SpecError

Array = Any
RenormRule = Literal["plain", "debiased"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenormLimits:
    """Bounds of r and d; None = no bound on that side, as a missing key in TensorFlow.

    `rmin` does not follow from `rmax`. The paper uses `rmin = 1 / rmax`.

    Raises:
        SpecError: A bound is no finite number, below 0, or `rmin > rmax`.

    Example:
        >>> from bnkit.core import RenormLimits
        >>> RenormLimits(rmin=2.0, rmax=0.5)
        Traceback (most recent call last):
        ...
        bnkit.core.errors.SpecError: RenormLimits: expected rmin <= rmax, got rmin=2.0 and ...
    """

    rmin: float | None = None
    rmax: float | None = None
    dmax: float | None = None

    def __post_init__(self) -> None:
        for name in ("rmin", "rmax", "dmax"):
            _check_number("RenormLimits", name, getattr(self, name))
        if self.rmin is not None and self.rmax is not None and self.rmin > self.rmax:
            msg = (
                f"RenormLimits: expected rmin <= rmax, got rmin={self.rmin} and rmax={self.rmax}. "
                "Swap them; the paper takes rmin = 1 / rmax."
            )
            raise SpecError(msg)

    def at(self, _batches: Any) -> "RenormLimits":
        """The limits after so many batches: these."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class RenormSchedule:
    """Limits that widen with training; the defaults are the paper's (Ioffe 2017, section 4).

    Plain batch norm (r = 1, d = 0) for `start` batches; then `rmax` grows linearly from 1 until
    batch `rmax_end`, `dmax` from 0 until batch `dmax_end`; `rmin = 1 / rmax`.

    Attributes:
        rmax: Final bound of r.
        dmax: Final bound of d.
        start: Batches of plain batch norm.
        rmax_end: Batch from which `rmax` holds.
        dmax_end: Batch from which `dmax` holds.

    Raises:
        SpecError: `rmax < 1`, `dmax < 0`, or an end before the start.

    Example:
        >>> from bnkit.core import RenormSchedule
        >>> RenormSchedule().at(15_000)
        Limits(rmin=0.636..., rmax=1.571..., dmax=2.5)
    """

    rmax: float = 3.0
    dmax: float = 5.0
    start: int = 5_000
    rmax_end: int = 40_000
    dmax_end: int = 25_000

    def __post_init__(self) -> None:
        for name in ("rmax", "dmax", "start", "rmax_end", "dmax_end"):
            if getattr(self, name) is None:
                _refuse_number("RenormSchedule", name, None)
            _check_number("RenormSchedule", name, getattr(self, name))
        if self.rmax < 1:
            msg = f"RenormSchedule: expected rmax >= 1, got {self.rmax}. 1 is plain batch norm."
            raise SpecError(msg)
        for name in ("rmax_end", "dmax_end"):
            if getattr(self, name) < self.start:
                msg = (
                    f"RenormSchedule: expected start <= {name}, got start={self.start} and "
                    f"{name}={getattr(self, name)}. The limits widen from the first to the second."
                )
                raise SpecError(msg)

    def at(self, batches: Any) -> "Limits":
        """The limits after so many batches.

        Args:
            batches: Batches seen, a number or an array of one (then so are the limits).

        Returns:
            Bounds with attributes `rmin`, `rmax` and `dmax`.
        """
        rmax = 1 + (self.rmax - 1) * _ramp(batches, self.start, self.rmax_end)
        return Limits(1 / rmax, rmax, self.dmax * _ramp(batches, self.start, self.dmax_end))


class Limits(NamedTuple):
    """Limits at one moment of a schedule: numbers, or arrays of one number."""

    rmin: Any
    rmax: Any
    dmax: Any


class RenormStats(NamedTuple):
    """What batch renormalization stores.

    Attributes:
        mean: Reference mean, shape `(c,)`; with rule `"debiased"` still to be divided by `weight`.
        stddev: Reference standard deviation `sqrt(var + eps)`, likewise.
        weight: Sum of the weights in the reference (rule `"debiased"`); 1 otherwise.
        running_mean: Mean of inference.
        running_var: Variance of inference, without Bessel's correction.
        running_stddev: Average of the standard deviation (rule `"plain"`); None otherwise.
    """

    mean: Array
    stddev: Array
    weight: Any
    running_mean: Array
    running_var: Array
    running_stddev: Array | None


class RenormWeights(NamedTuple):
    """Weights of the new batch: in what inference reads, and in the reference."""

    running: Any
    reference: Any


def initial_renorm(xp: Any, like: Array, rule: RenormRule) -> RenormStats:
    """Statistics before the first batch: mean 0, variance 1.

    Args:
        xp: The array namespace.
        like: An array with the shape, dtype and device of the statistics.
        rule: The rule.

    Returns:
        Constant statistics.
    """
    check_renorm_rule("initial_renorm", rule)
    zeros, ones = xp.zeros_like(like), xp.ones_like(like)
    if rule == "debiased":
        return RenormStats(zeros, zeros, xp.sum(zeros), zeros, ones, None)
    return RenormStats(zeros, ones, 1.0, zeros, ones, ones)


def renorm_correction(
    xp: Any,
    stats: RenormStats,
    batch: tuple[Array, Array],
    limits: Any,
    *,
    eps: float,
) -> tuple[Array, Array]:
    """`r` and `d` of a batch against the statistics before it.

    Args:
        xp: The array namespace.
        stats: The statistics before the batch.
        batch: Mean and standard deviation `sqrt(var + eps)` of the batch.
        limits: Bounds with attributes `rmin`, `rmax`, `dmax`; None where there is none.
        eps: That of the standard deviation.

    Returns:
        Scale and shift of the normalized batch, shape `(c,)`; constants for a gradient.
    """
    mean, stddev = batch
    if stats.running_stddev is None:
        # the weight that the averages lack is filled with the batch
        lack = 1 - stats.weight
        reference_mean = stats.mean + lack * mean
        reference_stddev = stats.stddev + lack * stddev
    else:
        reference_mean = stats.mean
        reference_stddev = _at_least(xp, stats.stddev, math.sqrt(eps))
    r = stddev / reference_stddev
    d = (mean - reference_mean) / reference_stddev
    r = r if limits.rmin is None else _at_least(xp, r, limits.rmin)
    r = r if limits.rmax is None else _at_most(xp, r, limits.rmax)
    if limits.dmax is not None:
        d = _at_most(xp, _at_least(xp, d, -limits.dmax), limits.dmax)
    return r, d


def update_renorm(
    xp: Any,
    stats: RenormStats,
    batch: tuple[Array, Array],
    weights: RenormWeights,
    *,
    eps: float,
) -> RenormStats:
    """Average one more batch into the statistics.

    Args:
        xp: The array namespace.
        stats: Statistics so far; the rule is that of `running_stddev`.
        batch: Mean and standard deviation `sqrt(var + eps)` of the batch.
        weights: How much it weighs in the two averages.
        eps: That of the standard deviation.

    Returns:
        New statistics; `stats` is not changed.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import RenormWeights, initial_renorm, update_renorm
        >>> before = initial_renorm(np, np.zeros(1), "debiased")
        >>> batch = np.array([4.0]), np.array([2.0])
        >>> after = update_renorm(np, before, batch, RenormWeights(0.5, 0.1), eps=0.0)
        >>> after.running_mean.tolist(), after.running_var.tolist()  # halfway to 4 and to 2 ** 2
        ([2.0], [2.5])
    """
    mean, stddev = batch
    p, q = weights
    reference_mean = _blend(stats.mean, mean, q)
    reference_stddev = _blend(stats.stddev, stddev, q)
    if stats.running_stddev is None:
        weight = _blend(stats.weight, 1.0, q)
        # a weight of 0 has seen nothing, and leaves inference where it was
        none = weight == 0
        known = xp.where(none, xp.ones_like(weight), weight)
        debiased = reference_stddev / known
        mean = reference_mean / known
        var = debiased * debiased - eps
        p = xp.where(none, xp.zeros_like(weight), xp.ones_like(weight)) * p
        return RenormStats(
            reference_mean,
            reference_stddev,
            weight,
            _blend(stats.running_mean, mean, p),
            _blend(stats.running_var, var, p),
            None,
        )
    running_stddev = _blend(stats.running_stddev, stddev, p)
    return RenormStats(
        reference_mean,
        reference_stddev,
        stats.weight,
        _blend(stats.running_mean, mean, p),
        _at_least(xp, running_stddev * running_stddev - eps, 0.0),
        running_stddev,
    )


def check_renorm_rule(where: str, rule: str) -> None:
    """Raise `SpecError` for a rule that is none."""
    if rule not in get_args(RenormRule):
        known = ", ".join(map(repr, get_args(RenormRule)))
        msg = f"{where}: expected rule to be one of {known}, got {rule!r}."
        raise SpecError(msg)


def _blend(old: Any, new: Any, weight: Any) -> Any:
    # written so that a weight of 1 copies exactly
    return (1 - weight) * old + weight * new


def _ramp(batches: Any, start: int, end: int) -> Any:
    """0 until `start`, 1 from `end`, linear between; a step where they are equal."""
    share = (batches - start + 1) if end == start else (batches - start) / (end - start)
    if isinstance(share, int | float):
        return min(max(share, 0.0), 1.0)
    if hasattr(share, "clip"):  # dynamo warns of the cache in array_namespace
        return share.clip(0, 1)
    return array_namespace(share).clip(share, 0, 1)


def _at_least(xp: Any, v: Array, bound: Any) -> Array:
    # where, not maximum: a NaN must stay a NaN, and the bound may be a number or an array
    return xp.where(v < bound, xp.zeros_like(v) + bound, v)


def _at_most(xp: Any, v: Array, bound: Any) -> Array:
    return xp.where(v > bound, xp.zeros_like(v) + bound, v)


def _check_number(where: str, name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        _refuse_number(where, name, value)


def _refuse_number(where: str, name: str, value: Any) -> None:
    msg = f"{where}: expected {name} to be a finite number >= 0, got {value!r}."
    raise SpecError(msg)

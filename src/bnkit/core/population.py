"""Population statistics from batches: what inference should use, estimated in four ways."""

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, NamedTuple, get_args

from bnkit.core.errors import InputError, SpecError
from bnkit.core.moments import Moments, merge
from bnkit.core.running import initial_running, update_running
from bnkit.core.spec import BatchNormSpec

Array = Any
Estimator = Literal["pooled", "paper", "cumulative", "ema"]


class PopulationStatistics(NamedTuple):
    """Mean and variance of the data under fixed weights, with what they were estimated from.

    Attributes:
        mean: Shape `(c,)`.
        var: Shape `(c,)`.
        count: Values per channel seen.
        batches: Batches seen.
        estimator: How the batches were combined.
    """

    mean: Array
    var: Array
    count: Any
    batches: int
    estimator: Estimator


def population_statistics(
    batches: Iterable[Moments],
    estimator: Estimator = "pooled",
    spec: BatchNormSpec | None = None,
) -> PopulationStatistics:
    """Estimate population statistics from the moments of batches.

    - `"pooled"`: moments of all values together, by `merge`; the variance divides by n - 1 and
      includes what differs between batches. Exact, whatever the batch sizes.
    - `"paper"`: Ioffe & Szegedy 2015, Algorithm 2, equation 15: the mean of batch means, and
      `m / (m - 1)` times the mean of batch variances. Unbiased for independent batches of equal
      size m, which it demands.
    - `"cumulative"`: equal weight for every batch, each variance with the specification's
      correction: torch's `momentum=None`. The same as `"paper"` for equal batches.
    - `"ema"`: the exponential average of training, replayed.

    Args:
        batches: Moments of each batch, in order; at least one.
        estimator: One of the four names.
        spec: For `"cumulative"` and `"ema"`: correction, weight and initial values; PyTorch's by
            default.

    Returns:
        The estimate.

    Raises:
        InputError: No batch, or batches of unequal size for `"paper"`.
        SpecError: An unknown estimator.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import moments, population_statistics
        >>> parts = [moments(np.array([0.0, 2.0])), moments(np.array([10.0, 12.0]))]
        >>> float(population_statistics(parts, "paper").var)
        2.0
        >>> round(float(population_statistics(parts, "pooled").var), 3)
        34.667
    """
    parts = list(batches)
    if not parts:
        msg = "population_statistics: expected at least one batch, got none. Give it some data."
        raise InputError(msg)
    if estimator not in get_args(Estimator):
        msg = (
            f"population_statistics: unknown estimator {estimator!r}. "
            f"Known: {', '.join(get_args(Estimator))}."
        )
        raise SpecError(msg)
    mean, var = _ESTIMATORS[estimator](parts, spec or BatchNormSpec())
    return PopulationStatistics(mean, var, sum(p.count for p in parts), len(parts), estimator)


def _pooled(parts: list[Moments], _: BatchNormSpec) -> tuple[Array, Array]:
    whole = reduce(merge, parts)
    if isinstance(whole.count, int | float) and whole.count <= 1:
        msg = "population_statistics: one value per channel has no variance. Give it more data."
        raise InputError(msg)
    return whole.mean, whole.var(correction=1)


def _paper(parts: list[Moments], _: BatchNormSpec) -> tuple[Array, Array]:
    sizes = {float(p.count) for p in parts}
    if len(sizes) > 1:
        msg = (
            "population_statistics: Algorithm 2 is defined for batches of one size, got sizes "
            f"{sorted(sizes)}. Use estimator='pooled', or drop the last batch."
        )
        raise InputError(msg)
    m = sizes.pop()
    if m <= 1:
        msg = (
            "population_statistics: Algorithm 2 divides by m - 1, got batches of one value per "
            "channel. Use larger batches, or estimator='pooled'."
        )
        raise InputError(msg)
    mean = sum(p.mean for p in parts) / len(parts)
    return mean, sum(p.var() for p in parts) / len(parts) * (m / (m - 1))


def _averaged(parts: list[Moments], spec: BatchNormSpec) -> tuple[Array, Array]:
    stats = initial_running(parts[0].m2, spec)
    for part in parts:
        stats = update_running(stats, part, spec)
    return stats.mean, stats.var


def _cumulative(parts: list[Moments], spec: BatchNormSpec) -> tuple[Array, Array]:
    return _averaged(parts, replace(spec, ema_weight=None))


_ESTIMATORS = {"pooled": _pooled, "paper": _paper, "cumulative": _cumulative, "ema": _averaged}

"""Running statistics: what training leaves behind for inference, under any specification."""

from typing import Any, NamedTuple

from array_api_compat import array_namespace
from jaxtyping import Float

from bnkit.core.errors import SpecError
from bnkit.core.moments import Moments
from bnkit.core.spec import BatchNormSpec

Array = Any


class RunningStats(NamedTuple):
    """The stored averages of batch statistics.

    Attributes:
        mean: Average of batch means, shape `(c,)`, before any debiasing.
        var: Average of batch variances with the specification's correction, shape `(c,)`.
        batches: Number of batches averaged so far.
        weight: Sum of the batches' weights in the average; `1 - (1 - ema_weight)**batches`
            for a constant weight. Debiasing divides by it.
    """

    mean: Float[Array, "*c"]
    var: Float[Array, "*c"]
    batches: Any = 0
    weight: Any = 0.0


def initial_running(like: Array, spec: BatchNormSpec) -> RunningStats:
    """Running statistics before the first batch.

    Args:
        like: An array with the shape, dtype and device of the statistics.
        spec: Gives the initial mean and variance.

    Returns:
        Constant statistics; no batch seen.
    """
    xp = array_namespace(like)
    return RunningStats(
        xp.full_like(like, spec.initial_mean), xp.full_like(like, spec.initial_var), 0, 0.0
    )


def update_running(stats: RunningStats, batch: Moments, spec: BatchNormSpec) -> RunningStats:
    """Average one more batch into the running statistics: equation 14.

    `mean = (1 - ema_weight) * mean + ema_weight * batch.mean`, the variance likewise with the
    specification's correction; `ema_weight=None` averages all batches equally (weight 1 / t at
    batch t). A weight of 1 copies the batch exactly.

    Args:
        stats: Statistics so far.
        batch: Moments of the new batch.
        spec: Says how much the batch weighs and how its variance is corrected.

    Returns:
        New statistics; `stats` is not changed.

    Raises:
        SpecError: The specification tracks something else than mean and variance.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import KERAS3, initial_running, moments, update_running
        >>> before = initial_running(np.zeros(1), KERAS3)
        >>> after = update_running(before, moments(np.array([[1.0], [3.0]]), (0,)), KERAS3)
        >>> float(after.mean[0]), float(after.var[0])
        (0.02, 1.0)
    """
    if spec.tracked_second_moment != "variance":
        msg = (
            "update_running: expected tracked_second_moment='variance', got "
            f"{spec.tracked_second_moment!r}. Only batch renormalization tracks another moment."
        )
        raise SpecError(msg)
    if spec.masked_whole == "skip" and _nothing(batch.count):
        return stats
    batches = stats.batches + 1
    factor = ema_factor(spec, batches)
    var = batch.var() * correction_factor(spec, batch.count)
    mean = (1.0 - factor) * stats.mean + factor * batch.mean
    var = (1.0 - factor) * stats.var + factor * var
    if not isinstance(batch.count, int | float) and spec.masked_whole != "zero":
        nothing = spec.masked_whole == "nan"
        mean, var = (
            _where_counted(batch.count, new, new * float("nan") if nothing else old)
            for new, old in ((mean, stats.mean), (var, stats.var))
        )
    weight = (1.0 - factor) * stats.weight + factor
    return RunningStats(mean, var, batches, weight)


def read_running(stats: RunningStats, spec: BatchNormSpec) -> tuple[Array, Array]:
    """Mean and variance as inference uses them: debiased where the specification says so.

    Args:
        stats: The stored averages.
        spec: Says what is divided by `stats.weight`.

    Returns:
        Mean and variance, shape `(c,)`.
    """
    if spec.debias == "none":
        return stats.mean, stats.var
    weight = stats.weight if _known_nonzero(stats.weight) else 1.0
    return stats.mean / weight, (stats.var / weight if spec.debias == "both" else stats.var)


def ema_factor(spec: BatchNormSpec, batches: Any) -> Any:
    """Weight of batch number `batches` (from 1) in the average."""
    if spec.first_batch == "copy" and _is_first(batches):
        return 1.0
    return 1.0 / batches if spec.ema_weight is None else spec.ema_weight


def correction_factor(spec: BatchNormSpec, count: Any) -> Any:
    """What the batch variance (divided by count) is multiplied with before it is stored.

    One value per channel has factor 1, as in every implementation that accepts it.

    Args:
        spec: Names the correction.
        count: Values per channel in the batch.

    Returns:
        1, n / (n - 1), n / (n - 1 - eps) or the product of the last two.
    """
    if spec.running_correction == 0:
        return 1.0
    bessel: Any = count / _at_least_one(count - 1)
    if spec.running_correction == 1:
        return bessel
    keras2: Any = count / _at_least_one(count - (1.0 + spec.eps))
    return keras2 if spec.running_correction == "n-1-eps" else keras2 * bessel


def _nothing(count: Any) -> bool:
    if isinstance(count, int | float):
        return False  # an empty batch is the caller's business: `empty_batch`
    return not bool(array_namespace(count).any(count > 0))


def _where_counted(count: Array, counted: Array, otherwise: Array) -> Array:
    return array_namespace(count).where(count > 0, counted, otherwise)


def _at_least_one(value: Any) -> Any:
    if isinstance(value, int | float):
        return value if value > 0 else 1
    xp = array_namespace(value)
    return xp.where(value > 0, value, xp.ones_like(value))


def _is_first(batches: Any) -> bool:
    return int(batches) == 1


def _known_nonzero(weight: Any) -> bool:
    return not isinstance(weight, int | float) or weight != 0

"""Ghost batch norm: which samples are normalized together, and what of them is averaged.

Hoffer, Hubara & Soudry (2017), *Train longer, generalize better*, section 4: a large batch is
normalized in groups ("ghost batches") of `virtual_batch_size` samples, so that its statistics
are as noisy as those of a small one.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, Literal, get_args

from bnkit.core.errors import InputError, SpecError
from bnkit.core.moments import Moments, merge

Array = Any
GhostOrder = Literal["contiguous", "strided"]
GhostRemainder = Literal["error", "smaller", "plain"]
GhostRunning = Literal["mean", "sequential", "total"]
_CHOICES = {"groups": GhostOrder, "remainder": GhostRemainder, "running": GhostRunning}


def ghost_slices(
    samples: int,
    virtual_batch_size: int,
    *,
    groups: GhostOrder = "contiguous",
    remainder: GhostRemainder = "error",
    where: str = "ghost_slices",
) -> tuple[slice, ...]:
    """The samples of each ghost batch, as slices of the batch dimension.

    With G groups, group g holds samples `g * size, g * size + 1, ...` (contiguous, as tabnet and
    composer do) or `g, g + G, g + 2 G, ...` (strided, as TensorFlow does).

    Args:
        samples: Samples in the batch.
        virtual_batch_size: Samples in a ghost batch.
        groups: How samples are dealt out.
        remainder: Where the size does not divide the batch: refuse it; make one group more, so
            that the last is smaller (strided: the last ones, by one sample each); or normalize
            the batch plainly, as one group.
        where: Head of an error message.

    Returns:
        One slice per group; together they are the batch.

    Raises:
        InputError: The size does not divide the batch, and `remainder="error"`.

    Example:
        >>> from bnkit.core import ghost_slices
        >>> ghost_slices(6, 3, groups="strided")
        (slice(0, 6, 2), slice(1, 6, 2))
        >>> ghost_slices(5, 3, remainder="smaller")
        (slice(0, 3, 1), slice(3, 5, 1))
    """
    if samples % virtual_batch_size:
        if remainder == "plain":
            return (slice(0, samples, 1),)
        if remainder == "error":
            msg = (
                f"{where}: expected a batch that virtual_batch_size={virtual_batch_size} divides, "
                f"got {samples} samples. Pass drop_last=True to the DataLoader, or choose "
                "remainder='smaller' (a smaller last group) or 'plain' (one group for such a "
                "batch)."
            )
            raise InputError(msg)
    count = max(-(-samples // virtual_batch_size), 1)
    if groups == "strided":
        return tuple(slice(g, samples, count) for g in range(count))
    starts = range(0, max(samples, 1), virtual_batch_size)
    return tuple(slice(s, min(s + virtual_batch_size, samples), 1) for s in starts)


def ghost_statistics(
    groups: Sequence[Moments], running: GhostRunning, correction: float = 0, *, xp: Any = None
) -> list[tuple[Array, Array]]:
    """The means and variances that enter the running average, in their order.

    Args:
        groups: Moments of the ghost batches.
        running: `"mean"` gives one pair, the mean over the groups of their means and variances
            (TensorFlow); `"sequential"` one pair per group, as if they were batches (tabnet,
            composer); `"total"` one pair, the statistics of the whole batch.
        correction: Subtracted from the count of each variance: 1 is Bessel's.
        xp: The array namespace, when the caller knows it.

    Returns:
        Pairs of mean and variance; each is averaged in as one batch.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import ghost_statistics, moments
        >>> groups = [moments(np.array([0.0, 2.0])), moments(np.array([10.0, 14.0]))]
        >>> [(float(m), float(v)) for m, v in ghost_statistics(groups, "mean")]
        [(6.5, 2.5)]
        >>> [(float(m), float(v)) for m, v in ghost_statistics(groups, "total")]
        [(6.5, 32.75)]
    """
    if running == "total":
        whole = reduce(partial(merge, xp=xp), groups)
        return [(whole.mean, whole.var(correction))]
    pairs = [(g.mean, g.var(correction)) for g in groups]
    if running == "sequential":
        return pairs
    return [(_average([m for m, _ in pairs]), _average([v for _, v in pairs]))]


def check_ghost(where: str, virtual_batch_size: Any, **choices: str) -> None:
    """Raise `SpecError` for a size or a choice that is none."""
    size = virtual_batch_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        msg = f"{where}: expected virtual_batch_size to be an integer of at least 1, got {size!r}."
        raise SpecError(msg)
    for name, value in choices.items():
        known = get_args(_CHOICES[name])
        if value not in known:
            listed = ", ".join(map(repr, known))
            msg = f"{where}: expected {name} to be one of {listed}, got {value!r}."
            raise SpecError(msg)


def _average(values: list[Array]) -> Array:
    return sum(values[1:], values[0]) / len(values)

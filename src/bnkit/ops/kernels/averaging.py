"""Averaging a batch into running statistics."""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from bnkit.ops.kernels.compiled import specialized
from bnkit.ops.kernels.openmp import Region, layout, pointer, region

# what these names mean is set anew for each variant: `specialized`
dtype: Any = None
average: Any = None

COMMIT = layout(9, 1)
"""batch mean, batch m2, c, count; running mean, var, counters of batches and of those left out,
skip; weight of the batch."""


def _run_average(a: Any, first: int, weight: float, batch: Any, count: int) -> None:
    new_mean, m2 = batch
    c = new_mean.size
    means = carray(pointer(a[first]), c, dtype)
    variances = carray(pointer(a[first + 1]), c, dtype)
    batches = carray(pointer(a[first + 2]), 1 if a[first + 2] else 0, np.int64)
    left_out = carray(pointer(a[first + 3]), 1 if a[first + 3] else 0, np.int64)
    finite = True
    for k in range(c):
        finite = finite and math.isfinite(new_mean[k]) and math.isfinite(m2[k])
    if a[first + 4] and not finite:
        if left_out.size:
            left_out[0] += 1
        return
    if batches.size:
        batches[0] += 1
    factor = weight if weight >= 0 else 1.0 / batches[0]
    for k in range(c):
        means[k] = (1.0 - factor) * means[k] + factor * new_mean[k]
        variances[k] = (1.0 - factor) * variances[k] + factor * (m2[k] / (count - 1))


@cache
def averaging(dtype: Any) -> Any:
    """Averaging a batch, as a piece of a region.

    Args:
        dtype: NumPy dtype of the statistics.

    Returns:
        `run(a, first, weight, (mean, m2), count)`: the description holds, from `first` on, the
        addresses of running mean, variance, counter of batches and of those left out, and whether
        a batch with NaN or infinity is left out. A weight below 0 stands for 1 / batches.
    """
    return specialized(_run_average, dtype=dtype)


def _run_commit(a: Any, part: int, parts: int) -> None:  # noqa: ARG001  the form of a region
    c = a[2]
    batch = carray(pointer(a[0]), c, dtype), carray(pointer(a[1]), c, dtype)
    average(a, 4, a[9:10].view(np.float64)[0], batch, a[3])


@cache
def commit_region(dtype: Any) -> Region:
    """Averaging a batch, described by `COMMIT`.

    Args:
        dtype: NumPy dtype of the statistics.

    Returns:
        The region.
    """
    return region(specialized(_run_commit, dtype=dtype, average=averaging(dtype)))

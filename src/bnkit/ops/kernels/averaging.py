"""Averaging a batch into running statistics, by address."""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

from bnkit.ops.kernels.compiled import specialized
from bnkit.ops.kernels.openmp import Region, layout, region
from bnkit.ops.kernels.regions import pointer

# what this name means is set anew for each variant: `specialized`
dtype: Any = None

COMMIT = layout(9, 1)
"""batch mean, batch m2, mean, var, batches, batches left out; c, count, skip; weight."""


def _run_commit(a: Any, part: int, parts: int) -> None:  # noqa: ARG001  the form of a region
    c, count, skip = a[6], a[7], a[8]
    new_mean = carray(pointer(a[0]), c, dtype)
    m2 = carray(pointer(a[1]), c, dtype)
    means = carray(pointer(a[2]), c, dtype)
    variances = carray(pointer(a[3]), c, dtype)
    batches = carray(pointer(a[4]), 1 if a[4] else 0, np.int64)
    left_out = carray(pointer(a[5]), 1 if a[5] else 0, np.int64)
    weight = a[9:10].view(np.float64)[0]
    finite = True
    for k in range(c):
        finite = finite and math.isfinite(new_mean[k]) and math.isfinite(m2[k])
    if skip and not finite:
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
def commit_region(dtype: Any) -> Region:
    """Averaging a batch into running statistics.

    Args:
        dtype: NumPy dtype of the statistics.

    Returns:
        A region described by `COMMIT`. A weight below 0 stands for 1 / batches; with `skip`, a
        batch with NaN or infinity changes nothing but the counter of those left out.
    """
    return region(specialized(_run_commit, dtype=dtype))

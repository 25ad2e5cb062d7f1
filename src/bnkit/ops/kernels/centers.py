"""Where deviations are measured from."""

import math
from typing import Any

from bnkit.ops.kernels.compiled import compiled
from bnkit.ops.kernels.vector import number

_STEPS = 2.0**20
_STEPS_WIDE = 2.0**49


@compiled
def center_near(x: Any, mean: float, var: float) -> Any:
    """A value within a tenth of a standard deviation of the mean, with few digits.

    The low digits of a full mean are lost in x - mean, in the same way for all x of a binade, so
    that these errors add up instead of averaging out. A multiple of a power of two near a tenth of
    the deviation leaves x - center exact, or nearly so. Adding and subtracting a large number
    rounds to such a multiple.

    Args:
        x: An array in whose precision to compute.
        mean: Of the values so far.
        var: Of the values so far.

    Returns:
        The center.
    """
    full = number(x, mean)
    grid = number(x, math.sqrt(max(var, 0.0)) * (_STEPS_WIDE if x.itemsize == 8 else _STEPS))
    center = (full + grid) - grid
    return center if math.isfinite(center) else full

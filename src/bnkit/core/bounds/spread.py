"""From sets for a mean and for a mean square about a fixed point to a set for the variance."""

import numpy as np

from bnkit.core.bounds.domain import Values, plain
from bnkit.core.errors import CertificateError

Ends = tuple[Values, Values]


def variance_interval(mean: Ends, square: Ends, center: Values) -> Ends:
    """Set for `var = E(x - center)**2 - (E x - center)**2` (certificates page, statement 20).

    Fails only where one of the two sets does: its probability of failure is at most the sum of
    theirs. The center is fixed before the data is seen, near the mean.

    Args:
        mean: Lower and upper end of a set for `E x`.
        square: Lower and upper end of a set for `E(x - center)**2`.
        center: The fixed point.

    Returns:
        Lower and upper end; the lower is at least 0.

    Raises:
        CertificateError: An end is NaN, or a set has its ends exchanged.

    Example:
        >>> from bnkit.core.bounds import variance_interval
        >>> variance_interval((-1.0, 3.0), (16.0, 20.0), 0.0)
        (7.0, 20.0)
    """
    (low, high), (least, most) = (tuple(np.asarray(e, float) for e in s) for s in (mean, square))
    if not (bool(np.all(low <= high)) and bool(np.all(least <= most))):
        msg = "variance_interval: expected sets (lower, upper) without NaN, got ends exchanged."
        raise CertificateError(msg)
    inside = (low <= center) & (center <= high)
    ends = np.square(low - center), np.square(high - center)
    nearest = np.where(inside, 0.0, np.minimum(*ends))
    upper = np.maximum(most - nearest, 0.0)
    return plain(np.maximum(least - np.maximum(*ends), 0.0)), plain(upper)

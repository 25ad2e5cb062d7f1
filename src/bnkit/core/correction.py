"""A correction of the variance that normalizes, by a batch norm that divides by n."""

import math


def corrected(count: int, correction: float, eps: float) -> tuple[float, float]:
    """Scale and eps by which a plain batch norm becomes one with a corrected variance.

    The variance adjustment method (VAM) of the tutorials corrects the variance of a mini-batch
    for its size. That is `m2 / (n - correction)` in place of `m2 / n`; with
    `k = n / (n - correction)`

        (x - mean) / sqrt(k * var + eps) = (x - mean) / sqrt(var + eps / k) / sqrt(k).

    With a weight, a factor per layer that the weight can learn: it changes what is learned first,
    and the step of training to inference where batches are small.

    Args:
        count: Values per channel.
        correction: Subtracted from the count; 0 is batch norm, 1 is Bessel's.
        eps: Added to the variance.

    Returns:
        `1 / sqrt(k)` and `eps / k`. A count that the correction uses up is left uncorrected, as
        for one value per channel.

    Example:
        >>> from bnkit.core import corrected
        >>> corrected(4, 1, 3.0)
        (0.866..., 2.25)
    """
    if not correction or count <= correction:
        return 1.0, eps
    k = count / (count - correction)
    return 1 / math.sqrt(k), eps / k

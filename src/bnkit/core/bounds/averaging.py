"""How many examples an exponential average is worth, by the question that is asked of it."""

from typing import NamedTuple

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, plain, whole
from bnkit.core.errors import CertificateError


class EffectiveSize(NamedTuple):
    """Sizes by which a weighted mean of independent examples is judged (statement 22).

    Attributes:
        variance: `1 / sum w**2`: the variance of the average is that of one example divided by
            this; for `hoeffding`.
        tail: `1 / max w`: for `chernoff`, which is wrong with the other.
        initial: Weight of the initial value, which is no example.
    """

    variance: Values
    tail: Values
    initial: Values


def ema_effective_size(
    batch: Values, ema_weight: Values, steps: Values | None = None
) -> EffectiveSize:
    """Effective sample sizes of a running mean under frozen weights (statement 22).

    For endless training `variance = b (2 - m) / m` and `tail = b / m`, whatever the size of the
    data: 304 and 160 examples at b = 16, m = 0.1. The examples of all batches must be
    independent, which those of a second epoch are not.

    Args:
        batch: Examples b in a batch; images, not pixels.
        ema_weight: Weight m of the new batch, in (0, 1]; PyTorch's `momentum`.
        steps: Updates since the initial value; None = endless.

    Returns:
        The sizes. The weights of the examples are scaled to sum 1.

    Raises:
        CertificateError: A weight outside (0, 1].

    Example:
        >>> from bnkit.core.bounds import ema_effective_size
        >>> size = ema_effective_size(16, 0.1)
        >>> round(size.variance), round(size.tail), size.initial
        (304, 160, 0.0)
        >>> round(ema_effective_size(16, 0.1, steps=1).variance)
        16
    """
    b = whole("ema_effective_size", "batch", batch)
    m = at_least("ema_effective_size", "ema_weight", ema_weight, 0, strict=True)
    if not bool(np.all(m <= 1)):
        msg = f"ema_effective_size: expected ema_weight in (0, 1], got {ema_weight}."
        raise CertificateError(msg)
    if steps is None:
        kept = np.zeros(np.broadcast(b, m).shape)
    else:
        kept = (1 - m) ** whole("ema_effective_size", "steps", steps)
    # sum of m (1 - m)**t, and of its square, over the steps
    total, square = 1 - kept, m / (2 - m) * (1 - kept**2)
    return EffectiveSize(plain(b * total**2 / square), plain(b * total / m), plain(kept))

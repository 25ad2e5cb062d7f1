"""What training changes besides the weights: the buffers of a layer, and how."""

from typing import Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

NonFinitePolicy = Literal["skip", "propagate", "raise"]


class StatisticsBuffers(NamedTuple):
    """The tensors that a commit changes; None where a layer has no such buffer.

    Attributes:
        running_mean: Shape `(c,)`.
        running_var: Shape `(c,)`.
        num_batches_tracked: Batches averaged so far.
        nonfinite_batches: Batches left out because they held NaN or infinity.
    """

    running_mean: Float[Tensor, " c"] | None
    running_var: Float[Tensor, " c"] | None
    num_batches_tracked: Int[Tensor, ""] | None = None
    nonfinite_batches: Int[Tensor, ""] | None = None


class Update(NamedTuple):
    """What to do with the statistics of a batch.

    The variance is stored with Bessel's correction. With `ema_weight=None` batch number t weighs
    1 / t, read from the counter on its device: no synchronisation, no graph break.

    Attributes:
        buffers: Changed in place.
        ema_weight: Weight of the new batch; None = cumulative average, which needs the counter.
        nonfinite: With `"propagate"` NaN and infinity enter the statistics; otherwise such a
            batch changes nothing but `nonfinite_batches`.
    """

    buffers: StatisticsBuffers
    ema_weight: float | None
    nonfinite: NonFinitePolicy = "skip"

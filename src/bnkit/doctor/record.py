"""One batch norm found in a subject, as plain numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

Row = Float64[np.ndarray, " c"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormRecord:
    """What was read of one batch norm; None where the subject does not say.

    Attributes:
        name: Qualified name.
        kind: Name of the class, or of the operator in a graph.
        num_features: Channels.
        eps: Added to the variance.
        ema_weight: Weight of the new batch; None is the cumulative average.
        knows_hyperparameters: Whether `eps` and `ema_weight` were read at all: a checkpoint holds
            neither.
        weight: Scale after normalization, shape `(c,)`.
        bias: Shift after normalization, shape `(c,)`.
        running_mean: Stored mean, shape `(c,)`.
        running_var: Stored variance, shape `(c,)`.
        batches: `num_batches_tracked`.
        statistics_dtype: Of the running statistics, such as "float32".
        training: Mode of the layer.
        tracks: Whether training updates the running statistics.
        fixed: Frozen for good: no `train()` can thaw it.
        trainable: Whether weight or bias require gradients.
        producer_trainable: Whether the parameters of the layer before it do.
        producer: Name of the layer before it, where it is known.
        channel_axis: Axis of the channels in the input, or several.
        built_at: File and line of the class that builds the layer.
    """

    name: str
    kind: str
    num_features: int
    eps: float | None = None
    ema_weight: float | None = None
    knows_hyperparameters: bool = False
    weight: Row | None = None
    bias: Row | None = None
    running_mean: Row | None = None
    running_var: Row | None = None
    batches: int | None = None
    statistics_dtype: str | None = None
    training: bool | None = None
    tracks: bool = True
    fixed: bool = False
    trainable: bool | None = None
    producer_trainable: bool | None = None
    producer: str | None = None
    channel_axis: int | tuple[int, ...] = 1
    built_at: tuple[str, int] | None = None

    @property
    def has_statistics(self) -> bool:
        """Whether both running statistics are there."""
        return self.running_mean is not None and self.running_var is not None

    @property
    def at_init(self) -> bool:
        """Running mean exactly 0 and running variance exactly 1 in every channel."""
        if self.running_mean is None or self.running_var is None:
            return False
        return not self.running_mean.any() and bool((self.running_var == 1).all())

    @property
    def affine_at_init(self) -> bool:
        """No parameter has moved: weight exactly 1 and bias exactly 0, or none at all."""
        weight = self.weight is None or bool((self.weight == 1).all())
        return weight and (self.bias is None or not self.bias.any())

    @property
    def finite(self) -> bool:
        """Whether the running statistics hold no NaN and no infinity."""
        parts = [p for p in (self.running_mean, self.running_var) if p is not None]
        return all(bool(np.isfinite(p).all()) for p in parts)

    def to_dict(self) -> dict[str, Any]:
        """The scalars; rows are summarized by the probe."""
        return {
            "name": self.name,
            "kind": self.kind,
            "num_features": self.num_features,
            "eps": self.eps,
            "ema_weight": self.ema_weight,
            "batches": self.batches,
            "training": self.training,
            "tracks": self.tracks,
            "fixed": self.fixed,
            "statistics_dtype": self.statistics_dtype,
            "producer": self.producer,
        }

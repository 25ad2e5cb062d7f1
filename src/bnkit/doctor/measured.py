"""What the probe measured, as plain numbers, and the thresholds they are held against."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from bnkit.doctor.finding import Impact
from bnkit.doctor.record import Row

Verdict = Literal["ok", "warning", "error", "unknown"]

# Healthy networks of the fault suite stay below 0.42 and 0.28; every fault of the statistics that
# costs a point of accuracy is above the line of an error (docs/doctor.md).
D90_ERROR, R90_ERROR = 0.5, 1.0
D90_WARNING, R90_WARNING = 0.25, 0.4
PERCENTILE = 90


class Distance(NamedTuple):
    """How far one set of statistics is from another, over channels.

    Attributes:
        d90: 90th percentile of the distance of the means, in standard deviations.
        r90: 90th percentile of |log2 of the ratio of the variances|.
        r50: Median of the signed log2 of the ratio.
        spread: 90th minus 10th percentile of the signed log2 of the ratio.
    """

    d90: float
    r90: float
    r50: float
    spread: float

    @property
    def verdict(self) -> Verdict:
        """Beyond which thresholds."""
        if self.d90 >= D90_ERROR or self.r90 >= R90_ERROR:
            return "error"
        return "warning" if self.d90 >= D90_WARNING or self.r90 >= R90_WARNING else "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProbe:
    """One layer, measured under batch propagation.

    Attributes:
        name: Qualified name.
        order: Position in the order of execution.
        mean: Of all values seen, per channel.
        var: Of all values seen, without correction.
        count: Values per channel seen.
        stored: Distance of the running statistics from those, or None where there are none.
        calls: Calls in one forward pass.
        calls_apart: Largest distance between the first call and another.
        fewest_values: Values per channel in a typical call.
        samples: Samples in a typical call.
        between: Variance between batch means, in units of that after shuffling; first layer only.
        constant: Largest share of channels with a batch variance below eps.
        offset: Largest |mean| / standard deviation of a channel.
        dtype: Of the input.
        shapes: Different shapes of the input, channels at axis 1.
        fewest_calls: Calls in the forward pass that has the fewest, not counting those without.
        tails: Share of positions in a bitwise constant tail of their sequence, by batch; empty
            for what is no sequence, or is masked.
        far: Largest share of results beyond 4 in a call, where the result goes into a sigmoid
            or tanh.
    """

    name: str
    order: int
    mean: Row
    var: Row
    count: float
    stored: Distance | None
    calls: int
    calls_apart: Distance
    fewest_values: int
    samples: int
    between: float | None
    constant: float
    offset: float
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    fewest_calls: int = 1
    tails: tuple[float, ...] = ()
    far: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Of the stored statistics."""
        return "unknown" if self.stored is None else self.stored.verdict

    def to_dict(self) -> dict[str, Any]:
        """Scalars with stable keys; a number that is not finite is null."""
        stored = self.stored._asdict() if self.stored else dict.fromkeys(Distance._fields)
        numbers = {
            **stored,
            "count": self.count,
            "calls": self.calls,
            "values_per_call": self.fewest_values,
            "between_batches": self.between,
            "offset": self.offset,
        }
        kept = {k: v if v is None or np.isfinite(v) else None for k, v in numbers.items()}
        return {**kept, "verdict": self.verdict}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """All layers, and the cost.

    Attributes:
        layers: By name, in the order of the records.
        silent: Layers that no batch reached.
        batches: Batches seen.
        samples: Samples seen.
        batch_size: Largest batch.
        impact: Eval mode beside batch statistics, where an output could be compared.
        dropout_ratio: Variance with dropout on over off, by layer; empty without dropout.
        input_mean: Mean of the first input.
        input_sd: Its standard deviation.
        lengths: Sizes of the inputs on axes that may be time.
    """

    layers: Mapping[str, LayerProbe]
    silent: tuple[str, ...]
    batches: int
    samples: int
    batch_size: int
    impact: Impact | None
    dropout_ratio: Mapping[str, float] = field(default_factory=dict)
    input_mean: float | None = None
    input_sd: float | None = None
    lengths: frozenset[int] = frozenset()

    @property
    def in_order(self) -> list[LayerProbe]:
        """Layers in the order of execution."""
        return sorted(self.layers.values(), key=lambda one: one.order)

    @property
    def mismatched(self) -> list[LayerProbe]:
        """Layers whose stored statistics are beyond the line of a warning."""
        return [one for one in self.in_order if one.verdict in {"warning", "error"}]

    @property
    def gain(self) -> float | None:
        """Accuracy with batch statistics minus that in eval mode, or the distance of outputs."""
        if self.impact is None:
            return None
        if self.impact.metric == "accuracy":
            return self.impact.after - self.impact.before
        return self.impact.before


def distance(one: tuple[Row, Row], other: tuple[Row, Row], eps: float) -> Distance:
    """How far mean and variance `one` are from `other`, which gives the unit.

    Args:
        one: Mean and variance, each of shape `(c,)`.
        other: The same, of the population.
        eps: Added to both variances.

    Returns:
        Percentiles over channels; what is not finite counts as infinitely far.

    Example:
        >>> import numpy as np
        >>> far = distance((np.zeros(4), np.full(4, 2.0)), (np.ones(4), np.ones(4)), 0.0)
        >>> round(far.d90, 3), round(far.r90, 3), far.verdict
        (1.0, 1.0, 'error')
    """
    mean, var = one
    mu, population = other
    if mean.shape != mu.shape:
        return Distance(np.inf, np.inf, np.inf, np.inf)
    with np.errstate(all="ignore"):
        d = np.abs(mean - mu) / np.sqrt(population + eps)
        r = np.log2((var + eps) / (population + eps))
    if not (np.isfinite(d).all() and np.isfinite(r).all()):
        return Distance(np.inf, np.inf, np.inf, np.inf)  # one such channel spoils every result
    low, high = (_percentile(r, p) for p in (100 - PERCENTILE, PERCENTILE))
    return Distance(
        _percentile(d, PERCENTILE),
        _percentile(np.abs(r), PERCENTILE),
        _percentile(r, 50),
        high - low,
    )


def _percentile(values: Row, percent: float) -> float:
    return float(np.percentile(values, percent)) if values.size else 0.0

"""What is kept of the batches of a pass: sums of fixed size, whatever the number of batches."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bnkit.core import (
    BatchNormSpec,
    InputError,
    Moments,
    RunningStats,
    initial_running,
    update_running,
)
from bnkit.core.population import Estimator
from bnkit.recalibration.intervals import Replicates
from bnkit.recalibration.layers import Layer
from bnkit.recalibration.side_by_side import OnHost, Sides, merged, nothing

# PyTorch's habit; the sizes of the batches are checked apart
_EQUALLY = BatchNormSpec(ema_weight=None)


@dataclass
class Tally:
    """The batches of one pass so far.

    Attributes:
        layers: The layers that are estimated.
        estimator: How batches are combined.
        whole: Moments of all values, all layers side by side.
        replicates: What the confidence intervals follow from.
        averages: Running statistics of each layer, for the estimators that average.
        calls: How often each layer was called.
        sizes: The smallest and the largest batch of each layer, values per channel.
        batches: Batches that count.
        samples: Samples in them.
        left_out: Batches with NaN or infinity that were left out.
        seen: Batches taken from the data.
    """

    layers: tuple[Layer, ...]
    estimator: Estimator
    sides: Sides = field(init=False)
    whole: Moments = field(init=False)
    replicates: Replicates = field(init=False)
    averages: dict[int, RunningStats] = field(default_factory=dict)
    calls: np.ndarray = field(init=False)
    sizes: np.ndarray = field(init=False)
    batches: int = 0
    samples: int = 0
    left_out: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        self.sides = Sides(tuple(layer.channels for layer in self.layers))
        self.whole = nothing(self.sides)
        self.replicates = Replicates.empty(self.sides)
        self.calls = np.zeros(len(self.layers))
        self.sizes = np.stack([np.full(len(self.layers), np.inf), np.zeros(len(self.layers))])

    def add(self, batch: OnHost, samples: int) -> None:
        """One more batch.

        Args:
            batch: What the layers reported.
            samples: Its samples.
        """
        self.whole = merged(self.whole, batch.whole)
        self.replicates.add(batch.whole)
        np.add.at(self.calls, batch.layers, 1)
        self.batches += 1
        self.samples += samples
        if self.estimator == "pooled":
            return
        for number, call in zip(batch.layers, batch.moments, strict=True):
            spec = self._spec(number)
            before = self.averages.get(number) or initial_running(call.m2, spec)
            self.averages[number] = update_running(before, call, spec)
            low, high = self.sizes[:, number]
            self.sizes[:, number] = min(low, call.count), max(high, call.count)

    def of(self, number: int) -> Moments:
        """Moments of one layer so far.

        Args:
            number: Of the layer.

        Returns:
            With one count for all channels.
        """
        part = self.sides.slices[number]
        count, mean, m2 = (v[part] for v in self.whole)
        return Moments(float(count[0]), mean, m2)

    def statistics(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and variance of one layer by the estimator; None if nothing reached it.

        Args:
            number: Of the layer.

        Returns:
            In float64.

        Raises:
            InputError: One value per channel, or batches of unequal size for `"paper"`.
        """
        layer, whole = self.layers[number], self.of(number)
        if whole.count == 0:
            return None
        if whole.count <= 1:
            msg = (
                f"{layer}: expected more than 1 value per channel, got {whole.count:g} in all the "
                "data: one value has no variance. Give it more data."
            )
            raise InputError(msg)
        if self.estimator == "pooled":
            return whole.mean, whole.var(correction=1)
        if self.estimator == "paper":
            self._check_sizes(layer, *self.sizes[:, number])
        average = self.averages[number]
        return average.mean, average.var

    def _spec(self, number: int) -> BatchNormSpec:
        if self.estimator != "ema":
            return _EQUALLY
        weight: Any = getattr(self.layers[number].module, "momentum", 0.1)
        return replace(_EQUALLY, ema_weight=weight)

    def _check_sizes(self, layer: Layer, low: float, high: float) -> None:
        """Algorithm 2 of Ioffe & Szegedy (2015) is defined for batches of one size m > 1."""
        if low == high and low > 1:
            return
        msg = (
            f"{layer}: Algorithm 2 of the paper is defined for batches of one size above 1, got "
            f"{low:g} to {high:g} values per channel. Use estimator='pooled', or drop the last "
            "batch."
        )
        raise InputError(msg)

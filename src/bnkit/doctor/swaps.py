"""Whether weights were exchanged between a training step and an evaluation."""

from typing import Any

import torch
from torch import Tensor, nn

_LARGEST = 65_536
_KEPT = 4
_NOTICED = 1e-6


class Swaps:
    """Keeps copies of a few parameters, as they were when statistics were last gathered.

    An optimizer step follows the last update, so that the parameters behind it count as the same
    ones. Statistics that were exchanged along with the weights, as by loading a checkpoint, fit
    them.

    Args:
        model: The model; the largest parameters of at most 65,536 numbers are kept.
        witness: A batch norm with running statistics.
    """

    def __init__(self, model: nn.Module, witness: Any) -> None:
        small = [p for p in model.parameters() if p.requires_grad and p.numel() <= _LARGEST]
        self._parameters = sorted(small, key=Tensor.numel, reverse=True)[:_KEPT]
        self._witness = witness
        self._known: list[Tensor] = []
        self._mean: Tensor | None = None
        self.largest = 0.0

    def gathered(self) -> None:
        """Statistics were updated, or an optimizer step was made: these weights are known."""
        with torch.no_grad():
            self._known = [p.detach().clone() for p in self._parameters]
            self._mean = self._witness.running_mean.detach().clone()

    def evaluated(self) -> None:
        """A forward pass in eval mode: compare."""
        if self._mean is None or not torch.equal(self._mean, self._witness.running_mean):
            return
        for now, before in zip(self._parameters, self._known, strict=True):
            apart = float((now.detach() - before).norm() / before.norm().clamp(min=1e-30))
            if apart > _NOTICED:
                self.largest = max(self.largest, apart)

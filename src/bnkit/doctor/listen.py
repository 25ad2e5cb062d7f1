"""Batch propagation: every batch norm of a copy normalizes with the statistics of its batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.core import Moments, merge, moments
from bnkit.doctor.find import batch_norms

_SAMPLES_KEPT = 4096


@dataclass(slots=True)
class Heard:
    """What one batch norm saw, in order.

    Attributes:
        order: Position of its first call in the first forward pass.
        by_call: Moments by the number of the call within a forward pass.
        batch_means: Mean of each batch, first call only.
        sample_means: Mean of each sample over its positions, first call only.
        counts: Values per channel of each call.
        samples: Samples of each call.
        calls: Calls in each forward pass.
        shapes: Shapes of the input, first call of each forward pass.
        constant: Largest share of channels whose batch variance is below eps.
        offset: Largest |mean| / standard deviation of a channel in a batch.
        dtype: Of the input.
    """

    order: int
    by_call: list[Moments] = field(default_factory=list)
    batch_means: list[Tensor] = field(default_factory=list)
    sample_means: list[Tensor] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    constant: float = 0.0
    offset: float = 0.0
    dtype: str = ""

    @property
    def whole(self) -> Moments | None:
        """Moments of all values."""
        return reduce(merge, self.by_call) if self.by_call else None


class Listener:
    """Hears what flows into the batch norms of a copy while `propagating`."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = batch_norms(model)
        self.heard: dict[str, Heard] = {}

    def next_batch(self) -> None:
        """Begin to count the calls of another forward pass."""
        for one in self.heard.values():
            one.calls.append(0)

    @contextmanager
    def propagating(self) -> Iterator[None]:
        """Normalize with batch statistics inside.

        The layers stay in eval mode and their running statistics are replaced, before every
        call, by those of the batch: so it works for any class that normalizes with its buffers,
        frozen and synchronized ones included.

        Yields:
            Nothing; afterwards the running statistics of the copy are what they were.
        """
        kept = {n: _statistics(layer) for n, layer in self._layers.items()}
        hooks = [
            layer.register_forward_pre_hook(self._hook(name))
            for name, layer in self._layers.items()
        ]
        try:
            with torch.no_grad():
                yield
        finally:
            for hook in hooks:
                hook.remove()
            for name, layer in self._layers.items():
                _assign(layer, kept[name])

    def _hook(self, name: str) -> Any:
        def hear(layer: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0] if args else None
            if not isinstance(x, Tensor) or x.ndim < 2 or x.numel() == 0:
                return
            axis = getattr(layer, "axis", 1)
            axis = axis[0] if isinstance(axis, tuple) and len(axis) == 1 else axis
            if not isinstance(axis, int):
                return  # several channel axes: the statistics are not rows
            axis %= x.ndim
            seen = _moments(x, axis)
            self._note(name, layer, x, axis, seen)
            mean, var = seen.mean, seen.var()
            _assign(layer, (mean, var))

        return hear

    def _note(self, name: str, layer: Any, x: Tensor, axis: int, seen: Moments) -> None:
        one = self.heard.get(name)
        if one is None:
            one = self.heard[name] = Heard(len(self.heard), calls=[0])
        wide = Moments(seen.count, seen.mean.double().cpu(), seen.m2.double().cpu())
        call = one.calls[-1]
        one.calls[-1] += 1
        if call < len(one.by_call):
            one.by_call[call] = merge(one.by_call[call], wide)
        else:
            one.by_call.append(wide)
        one.counts.append(int(wide.count))
        one.samples.append(x.shape[0])
        one.dtype = str(x.dtype).removeprefix("torch.")
        sd = (wide.var() + 1e-30).sqrt()
        one.offset = max(one.offset, float((wide.mean.abs() / sd).max()))
        if wide.count > 1:
            eps = getattr(layer, "eps", 1e-5)
            one.constant = max(one.constant, float((wide.var() < eps).double().mean()))
        if call == 0:
            one.shapes.append(tuple(x.shape))
            self._keep_means(one, x, axis, wide)

    @staticmethod
    def _keep_means(one: Heard, x: Tensor, axis: int, seen: Moments) -> None:
        one.batch_means.append(seen.mean)
        if one.order == 0 and axis != 0 and sum(map(len, one.sample_means)) < _SAMPLES_KEPT:
            axes = [a for a in range(x.ndim) if a not in (0, axis)]
            one.sample_means.append((x.mean(axes) if axes else x).double().cpu())


def _moments(x: Tensor, axis: int) -> Moments:
    """Moments per channel, in at least float32."""
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    axes = [a for a in range(x.ndim) if a != axis]
    if axis == 1 and x.is_contiguous():  # a third of the time; inaccurate for other layouts
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        count = prod(x.shape[a] for a in axes)
        return Moments(count, mean, var * count)
    return moments(x, axes)


def _statistics(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    return layer._buffers.get("running_mean"), layer._buffers.get("running_var")


def _assign(layer: nn.Module, values: tuple[Tensor | None, Tensor | None]) -> None:
    for name, value in zip(("running_mean", "running_var"), values, strict=True):
        now = layer._buffers.get(name)
        if now is not None and value is not None:
            layer._buffers[name] = value if value is now else value.reshape(now.shape)

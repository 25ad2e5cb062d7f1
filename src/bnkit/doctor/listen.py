"""Batch propagation: every batch norm of a copy normalizes with the statistics of its batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor, nn

from bnkit.core import Moments, merge, moments
from bnkit.doctor.find import batch_norms
from bnkit.doctor.inputs import Input, read_input

_SAMPLES_KEPT = 4096
_FAR = 4.0


@dataclass(slots=True)
class Heard:
    """What one batch norm saw, in order.

    Attributes:
        order: Position of its first call in the first forward pass.
        by_call: Moments by the number of the call within a forward pass.
        sample_means: Mean of each sample over its positions, first call only.
        counts: Values per channel of each call.
        samples: Samples of each call.
        calls: Calls in each forward pass.
        shapes: Shapes of the input, first call of each forward pass.
        constant: Largest share of channels whose batch variance is below eps.
        offset: Largest |mean| / standard deviation of a channel in a batch.
        dtype: Of the input.
        tails: Share of positions in a constant tail of their sequence, first call of each pass.
        far: Share of results beyond 4, by call, where that was asked for.
    """

    order: int
    by_call: list[Moments] = field(default_factory=list)
    sample_means: list[Tensor] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    constant: float = 0.0
    offset: float = 0.0
    dtype: str = ""
    tails: list[float] = field(default_factory=list)
    far: list[float] = field(default_factory=list)

    @property
    def pooled(self) -> Moments | None:
        """Moments of all values, as arrays."""
        return reduce(_merged, self.by_call) if self.by_call else None

    @property
    def whole(self) -> Moments | None:
        """Moments of all values, as tensors in double precision."""
        pooled = self.pooled
        return pooled and Moments(pooled.count, *map(torch.from_numpy, pooled[1:]))


class Listener:
    """Hears what flows into the batch norms of a copy while `propagating`.

    Args:
        model: The copy.
        squashed: Layers of whose results the share beyond 4 is wanted.
    """

    def __init__(self, model: nn.Module, squashed: frozenset[str] = frozenset()) -> None:
        self._layers = batch_norms(model)
        self._squashed = squashed
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
            layer.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, layer in self._layers.items()
        ]
        hooks += [
            layer.register_forward_hook(self._behind(name))
            for name, layer in self._layers.items()
            if name in self._squashed
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
        def hear(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = read_input(layer, args, kwargs)
            if given is None or (given.keep is not None and not bool(given.keep.any())):
                return
            count, mean, var = _batch_statistics(given)
            wide = _array(var)
            self._note(name, layer, given, Moments(count, _array(mean), wide * count), wide)
            _assign(layer, (mean, var))

        return hear

    def _behind(self, name: str) -> Any:
        def hear(_layer: nn.Module, _args: Any, result: Any) -> None:
            if isinstance(result, Tensor) and result.numel() and name in self.heard:
                self.heard[name].far.append(float((result.abs() > _FAR).double().mean()))

        return hear

    def _note(self, name: str, layer: Any, given: Input, wide: Moments, var: np.ndarray) -> None:
        one = self.heard.get(name)
        if one is None:
            one = self.heard[name] = Heard(len(self.heard), calls=[0])
        call = one.calls[-1]
        one.calls[-1] += 1
        if call < len(one.by_call):
            one.by_call[call] = _merged(one.by_call[call], wide)
        else:
            one.by_call.append(wide)
        one.counts.append(int(wide.count))
        one.samples.append(given.values.shape[0])
        one.dtype = str(given.values.dtype).removeprefix("torch.")
        one.offset = max(one.offset, float((wide.mean**2 / (var + 1e-30)).max()) ** 0.5)
        if wide.count > 1:
            below = np.count_nonzero(var < getattr(layer, "eps", 1e-5))
            one.constant = max(one.constant, below / var.size)
        if call == 0:
            one.shapes.append(tuple(given.values.shape))
            self._keep_samples(one, given)

    @staticmethod
    def _keep_samples(one: Heard, given: Input) -> None:
        x, keep = given.values, given.keep
        if x.ndim == 3 and keep is None and given.weights is None:
            one.tails.append(_tail(x))
        if one.order == 0 and sum(map(len, one.sample_means)) < _SAMPLES_KEPT:
            axes = tuple(range(2, x.ndim))
            if keep is None:
                means = x.mean(axes) if axes else x
            else:
                kept = keep.flatten(1).any(1)
                means = _over(x, keep, axes)[kept]
            one.sample_means.append(means.double().cpu())


def _over(x: Tensor, keep: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mean of each sample over the positions that count."""
    if not axes:
        return x
    return x.sum(axes) / keep.sum(axes).clamp(min=1)


def _tail(x: Tensor) -> float:
    """Share of positions that stand in a tail of bitwise equal ones, over `(n, c, length)`."""
    same = (x == x[..., -1:]).all(1)
    length = same.flip(1).long().cumprod(1).sum(1)
    return float(length[length > 1].sum()) / same.numel()


def _batch_statistics(given: Input) -> tuple[float, Tensor, Tensor]:
    """Count, mean and variance per channel, in at least float32."""
    x = given.values
    x = x if x.dtype == torch.float64 else x.float()
    if given.weights is not None:
        return _weighted(x, given)
    if given.keep is not None:
        x = x.movedim(1, -1)[given.keep.squeeze(1)]
    axes = [a for a in range(x.ndim) if a != 1]
    if x.is_contiguous():  # a third of the time; inaccurate for other layouts
        return x.numel() // x.shape[1], *torch.batch_norm_update_stats(x, None, None, 0.0)
    seen = moments(x, axes, xp=xp)
    return seen.count, seen.mean, seen.var()


def _weighted(x: Tensor, given: Input) -> tuple[float, Tensor, Tensor]:
    weights = given.weights.to(x)  # type: ignore[union-attr]
    if given.keep is not None:
        weights = weights * given.keep
    weights = weights.expand(x.shape[0], 1, *x.shape[2:])
    seen = moments(x, (0, *range(2, x.ndim)), weights, xp=xp)
    return float(seen.count.flatten()[0]), seen.mean, seen.var()


def _merged(a: Moments, b: Moments) -> Moments:
    return merge(a, b, xp=np)


def _array(row: Tensor) -> np.ndarray:
    return row.cpu().numpy().astype(np.float64)


def _statistics(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    return layer._buffers.get("running_mean"), layer._buffers.get("running_var")


def _assign(layer: nn.Module, values: tuple[Tensor | None, Tensor | None]) -> None:
    for name, value in zip(("running_mean", "running_var"), values, strict=True):
        now = layer._buffers.get(name)
        if now is not None and value is not None:
            # the dtype of the layer's own: kernels refuse others beside a weight in half precision
            same = value is now
            layer._buffers[name] = value if same else value.reshape(now.shape).to(now.dtype)

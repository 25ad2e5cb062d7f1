"""Layers that are watched: the moments of what they are given, and what they normalize with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm
from torch.nn.utils.rnn import PackedSequence

from bnkit import ops
from bnkit.core import InputError, Moments, at_least_one_value, moments, upcast
from bnkit.nn.axis.batch_norm_axis import BatchNorm
from bnkit.nn.axis.channel_axes import channel_axes
from bnkit.nn.checks import check_rank
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm_act import _WithActivation
from bnkit.nn.layers.masked import _keep, _Masked, _weights
from bnkit.nn.layers.variant import Variant
from bnkit.nn.naming import qualified_name
from bnkit.nn.parts.processes import Processes
from bnkit.ops.plain import is_plain
from bnkit.recalibration.layers import STATISTICS, Layer

# forward passes in training that are nothing but batch norm: one kernel gives output and moments
_PLAIN_FORWARDS = {
    _TorchBatchNorm.forward,
    nn.SyncBatchNorm.forward,
    BatchNormBase.forward,
    Variant.forward,
}


class Call(NamedTuple):
    """One call of one layer.

    Attributes:
        layer: Its number among those that are estimated.
        moments: Of its input.
    """

    layer: int
    moments: Moments


class Watch:
    """What the layers report during the batches of one pass.

    Args:
        layers: The layers to estimate.
        fixed: Mean and variance that each normalizes with; None = each batch with its own, which
            is how training runs.
    """

    def __init__(
        self, layers: Sequence[Layer], fixed: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> None:
        self.layers = layers
        self.fixed = fixed
        self.calls: list[Call] = []
        self.weights: Tensor | None = None
        self.so_far: Any = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it the layers report, and normalize as they are told."""
        watched = [_Watched(self, number, layer) for number, layer in enumerate(self.layers)]
        before = [layer.module.__dict__.get("forward") for layer in self.layers]
        try:
            for each in watched:
                each.attach()
            yield
        finally:
            for layer, forward in zip(self.layers, before, strict=True):
                layer.module.__dict__.pop("forward", None)
                if forward is not None:
                    layer.module.__dict__["forward"] = forward


class _Watched:
    """Stands in for the forward method of a layer."""

    def __init__(self, watch: Watch, number: int, layer: Layer) -> None:
        self.watch, self.number, self.layer = watch, number, layer
        self.module = module = layer.module
        own = module.__dict__.get("forward")
        self.original = module.forward
        kind = type(module).forward
        alone = watch.fixed is None and own is None and _part(module) is None
        self.fused = alone and kind in _PLAIN_FORWARDS
        self.fused_act = alone and kind is _WithActivation.forward

    def attach(self) -> None:
        if self.watch.fixed is not None:
            self._normalize_with(*self.watch.fixed[self.number])
        self.module.__dict__["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (self.fused or self.fused_act) and self.watch.weights is None and not kwargs:
            y = self._in_one_pass(*args)
            if y is not None:
                return y
        x, weights = self._values(args, kwargs)
        if x.numel():
            local = self._moments(x, weights)
            self._report(local)
            if self.watch.fixed is None:
                self._normalize_with(*self._normalizer(local, x))
        return self.original(*args, **kwargs)

    def _in_one_pass(self, x: Any, residual: Any = None) -> Tensor | None:
        """Output and moments from one kernel, where the input is ordinary."""
        m = self.module
        tensors = (x, m.weight, m.bias, residual)
        if not isinstance(x, Tensor) or not is_plain(tensors) or not x.is_floating_point():
            return None
        if x.ndim < 2 or x.numel() <= x.shape[1] or x.shape[1] != self.layer.channels:
            return None  # the ordinary way says what is wrong
        if not self.fused_act and residual is not None:
            return None
        m._check_input_dim(x)
        act = m.act if self.fused_act else ops.IDENTITY
        y, batch = ops.batch_norm_train(x, m.weight, m.bias, m.eps, residual=residual, act=act)
        self._report(_exact(x) if _is_far(batch) else batch)
        return y

    def _report(self, batch: Moments) -> None:
        self.watch.calls.append(Call(self.number, batch))

    def _values(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The input with channels at dimension 1, and the weights of its values."""
        given = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
        if isinstance(given, PackedSequence):
            return given.data, None
        if not isinstance(given, Tensor):
            msg = f"{self.layer}: expected a tensor as input, got {type(given).__name__}."
            raise InputError(msg)
        weights = self._weights(given) if self.watch.weights is not None else None
        where = partial(qualified_name, self.module)
        if isinstance(self.module, BatchNorm):
            axes = channel_axes(where, given, self.module.axis, self.module.num_features)
            return axes.second(given), weights
        if isinstance(self.module, _Masked):
            check_rank(where, given, self.module.ranks)
            weights = _times(weights, _masked_weights(where, given, args[1:], kwargs))
        if given.ndim < 2 or given.shape[1] != self.layer.channels:
            msg = (
                f"{self.layer}: expected {self.layer.channels} channels at dimension 1, got input "
                f"of shape {tuple(given.shape)}. Check the layer before, or the data."
            )
            raise InputError(msg)
        return given, weights

    def _weights(self, x: Tensor) -> Tensor | None:
        """The weights of the data for this input: one per sample, or one per position."""
        weights = self.watch.weights
        if weights is None:
            return None
        spatial = tuple(x.shape[2:])
        if tuple(weights.shape) == (x.shape[0],):
            return weights.reshape(-1, *(1,) * (x.ndim - 1)).expand(-1, 1, *spatial)
        if tuple(weights.shape) == (x.shape[0], *spatial):
            return weights.unsqueeze(1)
        msg = (
            f"{self.layer}: expected weights of shape {(x.shape[0],)} or {(x.shape[0], *spatial)} "
            f"for an input of shape {tuple(x.shape)}, got {tuple(weights.shape)}. Give one weight "
            "per sample, or use bnkit.nn.MaskedBatchNorm, which is told by the model."
        )
        raise InputError(msg)

    def _moments(self, x: Tensor, weights: Tensor | None) -> Moments:
        if weights is None:
            return _exact(x)
        x = _wide(x.detach())
        found = moments(x, _axes(x), weights.to(torch.float64), xp=xp)
        return found._replace(count=float(found.count.flatten()[0]))

    def _normalizer(self, local: Moments, x: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics of the batch; of everything so far where it holds a single value."""
        part = _part(self.module)
        if part is not None:
            pool = part.begin(self.module, x, lambda: str(self.layer))
            local = local if pool is None else pool.merge(local)
            local = local._replace(count=float(torch.as_tensor(local.count).flatten()[0]))
        if local.count <= 1:
            earlier = None if self.watch.so_far is None else self.watch.so_far(self.number)
            if earlier is None or earlier.count <= 1:
                msg = (
                    f"{self.layer}: expected more than 1 value per channel, got {local.count:g} in "
                    f"the first batch (input of shape {tuple(x.shape)}), which cannot be "
                    "normalized by itself. Use larger batches, or let a larger one come first."
                )
                raise InputError(msg)
            local = earlier
        return local.mean, local.m2 / at_least_one_value(local.count)

    def _normalize_with(self, *statistics: Tensor) -> None:
        """Put other tensors in the place of the buffers; the model gets its own back later."""
        for name, value in zip(STATISTICS, statistics, strict=True):
            like = self.module._buffers[name]
            value = torch.as_tensor(value).reshape(like.shape).to(like.device)
            value = value if like.is_complex() or not value.is_complex() else value.real
            self.module._buffers[name] = value.to(like.dtype)


def _is_far(batch: Moments) -> bool:
    """Whether a mean is so many deviations from 0 that its rounding in float32 shows.

    What batches differ by enters the variance; from `|mean| = 100 sd` on, half a unit in the last
    place of the mean is 3e-6 deviations.

    Args:
        batch: Moments in the precision of the kernel.

    Returns:
        False if they are in double precision.
    """
    if batch.mean.dtype == torch.float64:
        return False
    return bool((batch.mean.square() * batch.count > 1e4 * batch.m2).any())


def _exact(x: Tensor) -> Moments:
    """Moments with the mean in double precision."""
    found = ops.batch_moments(x)
    if found.mean.dtype in (torch.float64, torch.complex128):
        return found
    return moments(_wide(x.detach()), _axes(x), xp=xp)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _axes(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _part(module: Any) -> Any:
    """Who else has samples of the batch of a synchronized layer."""
    if isinstance(module, nn.SyncBatchNorm):
        part = Processes(module.process_group)
        return part if part.size() > 1 else None
    part = getattr(module, "_part", None)
    return part if isinstance(part, Processes) and part.size() > 1 else None


def _masked_weights(where: Any, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """What the mask and the weights of a masked layer leave of each position."""
    given = dict(zip(("mask", "sample_weight"), args, strict=False)) | kwargs
    mask, weights = given.get("mask"), given.get("sample_weight")
    kept = None if mask is None else _keep(where, mask, x).to(upcast(xp, x[:0]).real.dtype)
    return _times(kept, None if weights is None else _weights(where, weights, x))


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a * b

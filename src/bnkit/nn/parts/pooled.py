"""A training step of a layer whose batch has other parts elsewhere, or weights."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from bnkit import ops
from bnkit.core import EmptyBatchWarning, InputError, Moments
from bnkit.nn.checks import check_finite, check_residual, check_tensors, check_train_eps
from bnkit.nn.naming import qualified_name
from bnkit.ops import IDENTITY, Activation, Kept, Pool, StatisticsBuffers
from bnkit.ops.plain import is_plain


class Part(Protocol):
    """What a layer's batch is a part of. A layer that has one keeps it in `_part`."""

    def begin(self, layer: Any, input: Tensor, where: Callable[[], str]) -> Pool | None:
        """The other parts for one forward pass, or None if there are none."""
        ...

    def commit(self, layer: Any, buffers: StatisticsBuffers, whole: Moments) -> None:
        """Take the moments of the whole batch into the running statistics, now or later."""
        ...


def train_on_part(
    layer: Any,
    input: Tensor,
    residual: Tensor | None = None,
    act: Activation = IDENTITY,
    sample_weights: Tensor | None = None,
    *,
    kept: Kept | None = None,
) -> Tensor:
    """`act(batch_norm(input) + residual)` by the statistics of the whole batch, and their update.

    Args:
        layer: A `BatchNormBase`.
        input: This part, `(n, c, *spatial)`.
        residual: Added before the activation.
        act: The activation.
        sample_weights: Weights that broadcast against the input; they are counts.
        kept: What a mask keeps, of a layer without other parts.

    Returns:
        The output for this part.
    """
    where = partial(qualified_name, layer)
    training = layer.training and layer._policy.normalize == "batch"
    tracks = layer.track_running_stats and layer._policy.counts()
    statistics = (layer.running_mean, layer.running_var) if tracks else (None, None)
    named = zip(("running_mean", "running_var"), statistics, strict=True)
    check_tensors(where, input, {**dict(named), "weight": layer.weight, "bias": layer.bias})
    check_channels(where, input, layer.num_features)
    check_residual(where, input, residual)
    check_train_eps(where, layer.eps)
    part: Part | None = layer._part if training else None
    pool = None if part is None else part.begin(layer, input, where)
    given = input, layer.weight, layer.bias, layer.eps
    if kept is not None:
        y, whole = ops.batch_norm_masked(*given, kept)
    else:
        y, whole = ops.batch_norm_pooled(*given, sample_weights=sample_weights, pool=pool)
    whole = _counted(where, whole, input, empty=sample_weights is None)
    if whole is not None and tracks and training:
        buffers = StatisticsBuffers(*statistics, layer.num_batches_tracked, layer._left_out(input))
        (commit if part is None else part.commit)(layer, buffers, whole)
        if layer.on_nonfinite == "raise" and not torch.compiler.is_compiling():
            check_finite(where, whole.mean, whole.m2)
        if input.device.type == "cpu" and not torch.compiler.is_compiling():
            layer._report_nonfinite(where)
    y = y if residual is None else y + residual
    return act(y)


def commit(layer: Any, buffers: StatisticsBuffers, whole: Moments) -> None:
    """Average a batch into the running statistics of a layer, by the layer's own rules."""
    no_counter = layer.momentum is None and buffers.num_batches_tracked is None
    ema_weight = 0.0 if no_counter else layer.momentum
    ops.commit_statistics(buffers, whole, ema_weight, layer.on_nonfinite)


def check_channels(where: Callable[[], str], input: Tensor, num_features: int) -> None:
    """Raise `InputError` where the input has other channels than the layer."""
    if input.shape[1] != num_features:
        msg = (
            f"{where()}: expected {num_features} channels (num_features), got input of shape "
            f"{tuple(input.shape)}. Set num_features={input.shape[1]}, or check the layer before."
        )
        raise InputError(msg)


def _counted(
    where: Callable[[], str], whole: Moments, input: Tensor, *, empty: bool
) -> Moments | None:
    """The moments with one count, or None where there is nothing to commit."""
    count = whole.count
    if isinstance(count, Tensor):
        if not is_plain((count,)) or count.device.type != "cpu" or not count.numel():
            # not waited for: a variance of NaN leaves the batch out of the statistics
            few = count <= 1
            return whole._replace(m2=torch.where(few, torch.nan, whole.m2))
        number = float(count.flatten()[0])
        count = int(number) if number.is_integer() else number
    if count == 0 and empty:
        warnings.warn(
            f"{where()}: the batch is empty (input of shape {tuple(input.shape)}); the running "
            "statistics and their counter are left alone.",
            EmptyBatchWarning,
            stacklevel=3,
        )
        return None
    _check_count(where, count, input)
    return whole._replace(count=count)


def _check_count(where: Callable[[], str], count: float, input: Tensor) -> None:
    if count == 0:
        msg = (
            f"{where()}: expected values to normalize by, got a mask that is all False, or weights "
            f"that are all 0, for input of shape {tuple(input.shape)}. Leave such a batch out, or "
            "call .eval() if this is inference."
        )
        raise InputError(msg)
    if count <= 1:
        msg = (
            f"{where()}: expected more than 1 value per channel when training, got {count:g} in "
            f"the whole batch (input of shape {tuple(input.shape)}): the variance is unknown. "
            "Use a larger batch, call .eval() if this is inference, or, if the samples carry "
            "weights, scale these to counts: they should add up to the number of samples."
        )
        raise InputError(msg)

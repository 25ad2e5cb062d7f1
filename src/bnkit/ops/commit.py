"""Averaging batch statistics into buffers, in place, under every transform of torch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bnkit.core import Moments, merge
from bnkit.ops.kernels import numba_cpu
from bnkit.ops.plain import is_plain
from bnkit.ops.update import NonFinitePolicy, StatisticsBuffers, Update

Rule = Callable[[Moments, tuple[Tensor, ...]], None]


def commit_statistics(
    buffers: StatisticsBuffers,
    batch: Moments,
    ema_weight: float | None,
    nonfinite: NonFinitePolicy = "skip",
) -> None:
    """Average a batch into the running statistics, as `bnkit.core.update_running` does.

    It works inside `torch.func` transforms, where a plain in-place update is refused; under `vmap`
    the moments of all slices are merged and make one update, or each slice updates its own
    statistics where these are batched too.

    Args:
        buffers: Changed in place.
        batch: Moments of the batch.
        ema_weight: As `Update` has it.
        nonfinite: As `Update` has it.
    """
    update = Update(buffers, ema_weight, nonfinite)
    # a count that is no whole number is a sum of weights
    whole = isinstance(batch.count, int)
    if whole and in_memory(update, batch.mean.dtype) and is_plain(batch[1:]):
        numba_cpu.commit(update, (batch.mean, batch.m2, batch.count))
        return
    tensors = [b for b in buffers if b is not None]
    if not tensors:
        return
    present = tuple(b is not None for b in buffers)
    commit_by(partial(_update, (ema_weight, nonfinite, present)), batch, tuple(tensors))


def commit_by(update: Rule, batch: Moments, tensors: tuple[Tensor, ...]) -> None:
    """Change tensors in place by a rule of one's own, as `commit_statistics` does by its own.

    Args:
        update: `update(batch, tensors)` writes to the tensors; it sees no transform.
        batch: Moments of the batch.
        tensors: What it may write to.
    """
    mean, m2 = batch.mean.detach(), batch.m2.detach()
    if torch.compiler.is_compiling():
        update(Moments(batch.count, mean, m2), tensors)
    else:
        _Commit.apply(mean, m2, batch.count, update, *tensors)


def in_memory(update: Update, dtype: torch.dtype) -> bool:
    """Whether all buffers lie in this machine's memory, in a dtype: compiled code can write."""
    mean, var, counter, _ = update.buffers
    if mean is None or var is None or counter is None or not is_plain(update.buffers):
        return False
    alike = mean.dtype is dtype and var.dtype is dtype and mean.is_contiguous()
    return alike and numba_cpu.takes(mean) and var.is_contiguous()


class _Commit(Function):
    """An in-place update that transforms see as a function of constants."""

    @staticmethod
    def forward(mean: Tensor, m2: Tensor, count: int, update: Rule, *tensors: Tensor) -> Tensor:
        update(Moments(count, mean, m2), tensors)
        return mean.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)
        ctx.inputs = len(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:  # noqa: ARG004  the form torch asks for
        return (None,) * ctx.inputs

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:  # noqa: ARG004
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, None]:
        mean, m2, count, update, *tensors = inputs
        if any(d is not None for d in in_dims[4:]):
            return _each_slice(info.batch_size, in_dims, inputs), None
        mean, m2 = (
            _to_front(v, d, info.batch_size) for v, d in zip((mean, m2), in_dims[:2], strict=True)
        )
        counts = _counts(count, in_dims[2], info.batch_size)
        whole = Moments(counts[0], mean[0], m2[0])
        for i in range(1, info.batch_size):
            whole = merge(whole, Moments(counts[i], mean[i], m2[i]))
        out = _Commit.apply(whole.mean, whole.m2, whole.count, update, *tensors)
        return out, None


def _each_slice(size: int, in_dims: tuple, inputs: tuple) -> Tensor:
    """Statistics that are batched themselves, as an ensemble's are: each slice updates its own."""
    mean, m2, count, update, *tensors = inputs
    out = mean.new_zeros(())
    counts = _counts(count, in_dims[2], size)
    for i in range(size):
        parts = [
            v if d is None else v.select(d, i)
            for v, d in zip((mean, m2, *tensors), (*in_dims[:2], *in_dims[4:]), strict=True)
        ]
        out = _Commit.apply(parts[0], parts[1], counts[i], update, *parts[2:])
    return out


def _counts(count: Any, dim: int | None, size: int) -> Any:
    """The count of each slice: one number for all, or sums of weights."""
    return [count] * size if dim is None else count.movedim(dim, 0)


def _to_front(v: Tensor, dim: int | None, size: int) -> Tensor:
    return v.expand(size, *v.shape) if dim is None else v.movedim(dim, 0)


def _update(options: tuple, batch: Moments, tensors: tuple[Tensor, ...]) -> None:
    ema_weight, nonfinite, present = options
    given = iter(tensors)
    buffers = StatisticsBuffers(*(next(given) if p else None for p in present))
    var = batch.var(correction=1)
    ok = None
    if nonfinite != "propagate":
        ok = torch.isfinite(batch.mean).all() & torch.isfinite(var).all()
        if buffers.nonfinite_batches is not None:
            buffers.nonfinite_batches.add_(~ok)
    if buffers.num_batches_tracked is not None:
        buffers.num_batches_tracked.add_(1 if ok is None else ok)
    factor = _factor(buffers, ema_weight)
    for running, new in ((buffers.running_mean, batch.mean), (buffers.running_var, var)):
        if running is not None:
            # written so that a weight of 1 copies the batch exactly
            blended = (1 - factor) * running + factor * new.to(running.dtype)
            running.copy_(blended if ok is None else torch.where(ok, blended, running))


def _factor(buffers: StatisticsBuffers, ema_weight: float | None) -> Any:
    if ema_weight is not None:
        return ema_weight
    if buffers.num_batches_tracked is None:
        return 0.0
    # a first batch that was left out has not been counted
    return 1.0 / buffers.num_batches_tracked.clamp(min=1)

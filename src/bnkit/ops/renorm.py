"""The statistics of batch renormalization on torch tensors: read, and averaged in place."""

from functools import partial
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bnkit.core import Moments, RenormStats, RenormWeights, renorm_correction, update_renorm
from bnkit.ops.commit import NonFinitePolicy, commit_by
from bnkit.ops.plain import is_plain


class RenormBuffers(NamedTuple):
    """The tensors that batch renormalization keeps; `bnkit.core.RenormStats` says what they are.

    Attributes:
        running_mean: Shape `(c,)`.
        running_var: Shape `(c,)`.
        renorm_mean: Shape `(c,)`.
        renorm_stddev: Shape `(c,)`.
        running_stddev: Shape `(c,)`; None with rule `"debiased"`.
        renorm_weight: One number; None with rule `"plain"`.
        num_batches_tracked: Batches averaged so far.
        nonfinite_batches: Batches left out because they held NaN or infinity.
    """

    running_mean: Float[Tensor, " c"]
    running_var: Float[Tensor, " c"]
    renorm_mean: Float[Tensor, " c"]
    renorm_stddev: Float[Tensor, " c"]
    running_stddev: Float[Tensor, " c"] | None
    renorm_weight: Float[Tensor, ""] | None
    num_batches_tracked: Int[Tensor, ""] | None = None
    nonfinite_batches: Int[Tensor, ""] | None = None

    def stats(self) -> RenormStats:
        """As the core reads them."""
        weight = 1.0 if self.renorm_weight is None else self.renorm_weight
        return RenormStats(
            self.renorm_mean,
            self.renorm_stddev,
            weight,
            self.running_mean,
            self.running_var,
            self.running_stddev,
        )


def renorm_scale_shift(
    buffers: RenormBuffers, batch: Moments, limits: Any, eps: float
) -> tuple[Tensor, Tensor]:
    """`r` and `d` of a batch against the statistics before it; constants for autograd.

    Args:
        buffers: The statistics before the batch.
        batch: Moments of the batch, which are constants too.
        limits: Bounds with attributes `rmin`, `rmax`, `dmax`.
        eps: Added to the variance.

    Returns:
        Scale and shift of the normalized batch, shape `(c,)`.
    """
    if _in_memory((*buffers, *batch[1:])):
        with np.errstate(invalid="ignore", over="ignore"):
            pair = _mean_and_stddev(np, _array(batch), eps)
            r, d = renorm_correction(np, _arrays(buffers).stats(), pair, limits, eps=eps)
        like = buffers.renorm_mean.dtype
        return torch.from_numpy(r).to(like), torch.from_numpy(d).to(like)
    pair = _mean_and_stddev(xp, batch, eps)
    with torch.no_grad():
        r, d = renorm_correction(xp, buffers.stats(), pair, limits, eps=eps)
        return _saved_for_backward(r, d) if torch.compiler.is_compiling() else (r, d)


def commit_renorm(
    buffers: RenormBuffers,
    batch: Moments,
    weights: tuple[float | None, float | None],
    *,
    eps: float,
    nonfinite: NonFinitePolicy = "skip",
) -> None:
    """Average a batch into the statistics of batch renormalization, in place.

    Args:
        buffers: Changed in place.
        batch: Moments of the batch.
        weights: Weights of the new batch in what inference reads and in the reference; None =
            cumulative average, which needs the counter.
        eps: Added to the variance.
        nonfinite: As for `commit_statistics`.
    """
    if _in_memory((*buffers, *batch[1:])):
        _update_in_memory(buffers, batch, weights, eps=eps, nonfinite=nonfinite)
        return
    present = tuple(b is not None for b in buffers)
    update = partial(_update, (present, weights, eps, nonfinite))
    commit_by(update, batch, tuple(b for b in buffers if b is not None))


def _update(options: tuple, batch: Moments, tensors: tuple[Tensor, ...]) -> None:
    present, weights, eps, nonfinite = options
    given = iter(tensors)
    buffers = RenormBuffers(*(next(given) if p else None for p in present))  # pyright: ignore
    pair = _mean_and_stddev(xp, batch, eps)
    ok = None
    if nonfinite != "propagate":
        ok = torch.isfinite(pair[0]).all() & torch.isfinite(pair[1]).all()
        if buffers.nonfinite_batches is not None:
            buffers.nonfinite_batches.add_(~ok)
    if buffers.num_batches_tracked is not None:
        buffers.num_batches_tracked.add_(1 if ok is None else ok)
    factors = RenormWeights(*(_factor(buffers, w) for w in weights))
    before = buffers.stats()
    after = update_renorm(xp, before, pair, factors, eps=eps)
    for old, new in zip(before, after, strict=True):
        if isinstance(old, Tensor) and new is not None:
            new = new.to(old.dtype)
            old.copy_(new if ok is None else torch.where(ok, new, old))


def _update_in_memory(
    buffers: RenormBuffers,
    batch: Moments,
    weights: tuple[float | None, float | None],
    *,
    eps: float,
    nonfinite: NonFinitePolicy,
) -> None:
    """As `_update`, by NumPy on the memory of the tensors: a tenth of the time for few channels."""
    with np.errstate(invalid="ignore", over="ignore"):
        pair = _mean_and_stddev(np, _array(batch), eps)
        finite = np.isfinite(pair[0]).all() and np.isfinite(pair[1]).all()
        if nonfinite != "propagate" and not finite:
            if buffers.nonfinite_batches is not None:
                buffers.nonfinite_batches.add_(1)
            return
        if buffers.num_batches_tracked is not None:
            buffers.num_batches_tracked.add_(1)
        before = _arrays(buffers).stats()
        factors = RenormWeights(*(_factor(buffers, w) for w in weights))
        after = update_renorm(np, before, pair, factors, eps=eps)
    for old, new in zip(before, after, strict=True):
        if isinstance(old, np.ndarray) and new is not None:
            np.copyto(old, new)
    # autograd must know that somebody else's graph may hold the old values
    written = [b for b in buffers[:6] if b is not None and not b.is_inference()]
    torch.autograd.graph.increment_version(written)


def _in_memory(tensors: tuple[Tensor | None, ...]) -> bool:
    return is_plain(tensors) and all(t is None or t.device.type == "cpu" for t in tensors)


def _array(batch: Moments) -> Moments:
    return Moments(batch.count, batch.mean.numpy(), batch.m2.numpy())


def _arrays(buffers: RenormBuffers) -> RenormBuffers:
    """The same memory, as NumPy sees it."""
    seen = (None if b is None else b.detach().numpy() for b in buffers)
    return RenormBuffers(*seen)  # pyright: ignore[reportArgumentType]


def _factor(buffers: RenormBuffers, weight: float | None) -> Any:
    if weight is not None:
        return weight
    if buffers.num_batches_tracked is None:
        return 0.0
    # a first batch that was left out has not been counted
    counted = buffers.num_batches_tracked.clamp(min=1)
    if _in_memory((counted,)):
        return 1.0 / int(counted)
    return 1.0 / counted.to(buffers.running_mean.dtype)


def _saved_for_backward(r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """`r` and `d` as a compiler must keep them for the backward pass.

    What is cheap it computes again there, from the buffers, which by then hold the new averages:
    the gradients were wrong from the second step on (torch 2.13, aot_eager and inductor). A
    concatenation is nothing that it computes twice.

    Args:
        r: Scale.
        d: Shift.

    Returns:
        The same values.
    """
    r, d = torch.cat([r, d]).chunk(2)
    return r, d


def _mean_and_stddev(xp: Any, batch: Moments, eps: float) -> tuple[Any, Any]:
    return batch.mean, xp.sqrt(batch.var() + eps)

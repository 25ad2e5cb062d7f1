"""The statistics of batch renormalization on torch tensors: read, and averaged in place."""

from functools import partial
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bnkit.core import Moments, RenormStats, RenormWeights, renorm_correction, update_renorm
from bnkit.ops.commit import NonFinitePolicy, commit_by


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
    pair = _mean_and_stddev(batch, eps)
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
    present = tuple(b is not None for b in buffers)
    update = partial(_update, (present, weights, eps, nonfinite))
    commit_by(update, batch, tuple(b for b in buffers if b is not None))


def _update(options: tuple, batch: Moments, tensors: tuple[Tensor, ...]) -> None:
    present, weights, eps, nonfinite = options
    given = iter(tensors)
    buffers = RenormBuffers(*(next(given) if p else None for p in present))  # pyright: ignore
    pair = _mean_and_stddev(batch, eps)
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
        if isinstance(old, Tensor):
            new = new.to(old.dtype)
            old.copy_(new if ok is None else torch.where(ok, new, old))


def _factor(buffers: RenormBuffers, weight: float | None) -> Any:
    if weight is not None:
        return weight
    if buffers.num_batches_tracked is None:
        return 0.0
    # a first batch that was left out has not been counted
    return 1.0 / buffers.num_batches_tracked.clamp(min=1).to(buffers.running_mean.dtype)


def _saved_for_backward(r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Keep a compiler from computing r and d again in the backward pass.

    It does so with what is cheap, from the buffers, which by then hold the new averages: the
    gradients of the second step are wrong (torch 2.13, aot_eager and inductor). A concatenation
    is nothing it computes twice.
    """
    r, d = torch.cat([r, d]).chunk(2)
    return r, d


def _mean_and_stddev(batch: Moments, eps: float) -> tuple[Tensor, Tensor]:
    return batch.mean, torch.sqrt(batch.var() + eps)

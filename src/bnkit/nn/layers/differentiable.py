"""Batch norm whose running statistics take part in the graph."""

from functools import partial
from typing import Any, NamedTuple, Self

import array_api_compat.torch as xp
import torch
from jaxtyping import Float
from torch import Tensor

from bnkit import ops
from bnkit.core import moments, upcast
from bnkit.nn.checks import check_eval_eps, check_rank, check_tensors
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.layers.recipe import Where
from bnkit.nn.layers.variant import Values, Variant
from bnkit.nn.naming import qualified_name
from bnkit.nn.statistics.recompute import outside_of_checkpoint


class LiveStatistics(NamedTuple):
    """Running statistics as functions of the batches that made them."""

    mean: Float[Tensor, " c"]
    var: Float[Tensor, " c"]


class _Differentiable(Variant):
    """Keeps the running statistics of the last step in the graph, beside the buffers."""

    added = ("unroll", "live")
    alone = "its live statistics are functions of the batch of one process"
    at_once = "its live statistics are those of the last step"
    unroll: bool
    live: LiveStatistics | None

    def __init__(self, *args: Any, unroll: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unroll, self.live = unroll, None

    def forward(self, input: Values) -> Values:
        """As plain batch norm; in eval the live statistics normalize, where there are any."""
        live = self.live
        if self.training or live is None or not torch.is_grad_enabled():
            return super().forward(input)
        where = partial(qualified_name, self)
        check_rank(where, input, self.ranks)
        check_tensors(where, input, {**live._asdict(), "weight": self.weight, "bias": self.bias})
        check_eval_eps(where, self.eps)
        return ops.batch_norm_eval(input, (live.mean, live.var), self.weight, self.bias, self.eps)

    def _train_step(self, where: Where, input: Tensor) -> Tensor:
        del where
        if not self._tracks:
            return self._normalize(input)
        live = None
        if torch.is_grad_enabled() and input.requires_grad:
            # activation checkpointing counts what a layer saves, and repeats without this
            with outside_of_checkpoint():
                live = self._next(input)
        y = self._normalize(input)
        self.live = live
        return y

    def _next(self, input: Tensor) -> LiveStatistics:
        """The statistics that the buffers are about to hold."""
        wide = upcast(xp, input)
        batch = moments(wide, (0, *range(2, input.ndim)), xp=xp)
        weight: Any = self._ema_weight
        if weight is None:
            counted: Any = self.num_batches_tracked
            weight = 1.0 / (counted + 1).to(batch.m2.dtype)
        old = self.live if self.unroll and self.live is not None else None
        before: Any = old or (self.running_mean, self.running_var)
        new = batch.mean, batch.var(correction=1)
        ok = torch.isfinite(new[0]).all() & torch.isfinite(new[1]).all()
        skips = self.on_nonfinite != "propagate"
        kept = []
        for a, b in zip(before, new, strict=True):
            # the buffer changes in place before the backward pass
            a = a if old else a.clone()
            blended = (1 - weight) * a + weight * b.to(a.dtype)
            kept.append(torch.where(ok, blended, a) if skips else blended)
        return LiveStatistics(*kept)

    def detach_(self) -> Self:
        """Cut the running statistics off the graph, as after an optimizer step."""
        self.live = None
        return self

    def extra_repr(self) -> str:
        """As the plain layer, with `unroll`."""
        return f"{super().extra_repr()}, unroll={self.unroll}"

    def reset_running_stats(self) -> None:
        """As in torch; cuts the graph too."""
        super().reset_running_stats()
        self.__dict__["live"] = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.live = None

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        self.live = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # a copy has no part in the graph
        return {**self.__dict__, "live": None}


class DifferentiableBatchNorm2d(_Differentiable, BatchNorm2d):
    """Batch norm over `(N, C, H, W)` whose running statistics have a gradient.

    Every value is that of `BatchNorm2d`. Beside the buffers, `live` holds the running mean and
    variance after the last training step as functions of its batch,
    `(1 - momentum) * before + momentum * batch`; in eval mode, with gradients enabled, it
    normalizes with these, so that a loss of inference reaches the batches and the layers before.

    That helps where a loss depends on inference after training: meta-learning that trains on a
    support set and is judged on a query set in eval mode; a penalty on the running statistics,
    such as their distance to those of another domain; a gradient by the data of the last steps.
    In ordinary training nothing reads the statistics, the gradient through them is zero, and the
    layer only costs more: the moments are computed once more, and the last batch stays alive.

    Call `detach_()` after each optimizer step, as with the state of a recurrent network: a graph
    that a backward pass has freed cannot be used again.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Weight of the new batch; None = cumulative average.
        affine: Learn a weight and a bias.
        track_running_stats: Keep running statistics; without them there is nothing to be live.
        device: Device of parameters and buffers.
        dtype: Dtype of the parameters.
        bias: Learn a bias, where `affine`.
        on_nonfinite: As in `BatchNorm2d`.
        unroll: Keep the graph of all steps since `detach_()`, not of the last one alone.

    Raises:
        InputError: As in `BatchNorm2d`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.DifferentiableBatchNorm2d(3)
        >>> support = torch.randn(4, 3, 2, 2, requires_grad=True)
        >>> y = layer(support)
        >>> query = layer.eval()(torch.randn(1, 3, 2, 2))
        >>> bool(torch.autograd.grad(query.sum(), support)[0].abs().sum() > 0)
        True
    """


class DifferentiableBatchNorm1d(_Differentiable, BatchNorm1d):
    """The same over `(N, C)` or `(N, C, L)`; otherwise as `DifferentiableBatchNorm2d`."""


class DifferentiableBatchNorm3d(_Differentiable, BatchNorm3d):
    """The same over `(N, C, D, H, W)`; otherwise as `DifferentiableBatchNorm2d`."""

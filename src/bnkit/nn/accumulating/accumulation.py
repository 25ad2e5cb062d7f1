"""Running statistics that move once per optimizer step, from all of its micro-batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm

from bnkit.core import ConversionError, Moments, merge
from bnkit.nn.axis.axis_state import AxisState
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.whitened import Whitened
from bnkit.nn.naming import check_model
from bnkit.nn.parts.pooled import Part, commit
from bnkit.ops import Pool, StatisticsBuffers
from bnkit.ops.plain import is_plain


@contextmanager
def accumulate(model: nn.Module) -> Iterator[None]:
    """Within it, training passes collect moments; leaving it updates the running statistics once.

    The moments of all passes are merged (theory page, equation 9) and enter the average as one
    batch, with one step of `num_batches_tracked`: k micro-batches of n samples count as the one
    batch of k n samples that they stand for, not as k steps of a faster average. Outputs and
    gradients are untouched: each micro-batch is normalized by its own statistics, so that in the
    second batch norm of a network the merged moments are those of what it was given, not of what
    the one big batch would have given it (`accumulate_exactly` makes them equal).

    An exception within leaves the running statistics as they were. Batches with NaN or infinity
    are left out one by one, as `on_nonfinite` says. Synchronized layers merge over processes,
    too; what the statistics policy of a layer does not count is not merged. Costs 2 C numbers per
    layer. Compiled layers are compiled once more for it.

    The groups of ghost batch norms are those of the one big batch, and enter as there; on a GPU
    one bad batch leaves out all of such a layer. Batch renormalization compares each micro-batch
    with the statistics before the first.

    Args:
        model: Any module; one optimizer step of it stands in the `with`.

    Yields:
        Nothing.

    Raises:
        ConversionError: A batch norm of torch in training mode; call `replace_` first. A
            `DifferentiableBatchNorm`, whose statistics cannot wait.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(bnkit.nn.BatchNorm1d(1, momentum=0.5))
        >>> with bnkit.nn.accumulate(model):
        ...     for micro_batch in torch.tensor([[[0.0], [2.0]], [[10.0], [12.0]]]):
        ...         y = model(micro_batch)
        >>> float(model[0].running_mean), int(model[0].num_batches_tracked)
        (3.0, 1)
    """
    layers = batch_norms("accumulate", model, "at_once")
    parts = [_Accumulated(layer._part) for layer in layers]
    with attached(layers, parts):
        yield
    for layer, part in zip(layers, parts, strict=True):
        part.finish(layer)


def batch_norms(where: str, model: nn.Module, excuse: str) -> list[Any]:
    """The batch norms of a model that can take part in a larger batch.

    Args:
        where: Head of the error message.
        model: Any module.
        excuse: The attribute of a layer that says why it cannot.

    Returns:
        Each layer once.

    Raises:
        ConversionError: A batch norm that is not bnkit's, in training mode.
    """
    check_model(where, model)
    for name, layer in model.named_modules():
        ours = isinstance(layer, (BatchNormBase, AxisState, Whitened))
        if isinstance(layer, _TorchBatchNorm) and not ours and layer.training:
            msg = (
                f"{where}: expected the batch norms of bnkit, got {name!r} ({type(layer).__name__} "
                "of torch, or not initialized yet). Call bnkit.nn.replace_(model) first, and run "
                "lazy layers once."
            )
            raise ConversionError(msg)
        reason = getattr(layer, excuse, None) if ours and layer.training else None
        if reason is not None:
            raise ConversionError(f"{where}: {refused(name, layer, reason)}")
    return [m for m in model.modules() if isinstance(m, (BatchNormBase, AxisState))]


def refused(name: str, layer: nn.Module, reason: str) -> str:
    """A sentence about a layer that cannot take part."""
    called = f"{name!r} ({type(layer).__name__})" if name else type(layer).__name__
    way = "" if getattr(layer, "not_plain", None) else " Call bnkit.nn.plain_ on it first."
    return (
        f"expected layers whose batch may be a part of a larger one, got {called}: {reason}. "
        f"Nothing was changed.{way}"
    )


@contextmanager
def attached(layers: list[Any], parts: list[Any]) -> Iterator[None]:
    """Give each layer its part, and what it had before afterwards."""
    before = [layer.__dict__.get("_part") for layer in layers]
    try:
        for layer, part in zip(layers, parts, strict=True):
            layer.__dict__["_part"] = part
        yield
    finally:
        for layer, part in zip(layers, before, strict=True):
            layer.__dict__.pop("_part", None)
            if part is not None:
                layer.__dict__["_part"] = part


def outside(part: Part | None = None) -> Part | None:
    """What a copy of a layer in a context has for a part."""
    return part


class _Accumulated:
    """The `Part` of one layer: like the one below it, but commits later."""

    def __init__(self, below: Part | None) -> None:
        self.below = below
        self.whole: Moments | None = None
        self.buffers = StatisticsBuffers(None, None)
        self.groups: list[Moments] = []
        self.take: Callable[[list[Moments]], None] | None = None

    def __str__(self) -> str:
        return "accumulating=True" if self.below is None else f"{self.below}, accumulating=True"

    def __reduce__(self) -> tuple:
        """A copy of the layer is not in the context, whose end would not reach it."""
        return outside, (self.below,)

    def begin(self, layer: Any, input: Tensor, where: Callable[[], str]) -> Pool | None:
        """Micro-batches are normalized alone."""
        return None if self.below is None else self.below.begin(layer, input, where)

    def commit(self, layer: Any, buffers: StatisticsBuffers, whole: Moments) -> None:
        """Merge one micro-batch into those before."""
        self.buffers = buffers
        if layer.on_nonfinite != "propagate":
            whole = _finite(whole, buffers)
        self.whole = whole if self.whole is None else merge(self.whole, whole, xp=xp)

    def collect(
        self,
        layer: Any,
        buffers: Any,
        groups: list[Moments],
        take: Callable[[list[Moments]], None],
    ) -> None:
        """Note the groups of one micro-batch of a layer that commits by a rule of its own."""
        if layer.on_nonfinite != "propagate" and _is_bad(groups):
            if buffers.nonfinite_batches is not None:
                buffers.nonfinite_batches.add_(1)
            return
        self.groups += groups
        self.take = take

    def finish(self, layer: Any) -> None:
        """Commit what has come together, if anything."""
        if self.take is not None:
            self.take(self.groups)
        if self.whole is None:
            return
        count, _, m2 = self.whole
        if isinstance(count, int | float) and count <= 1:
            return
        # a tensor is not waited for: with a variance of NaN the batch is left out
        nothing = torch.as_tensor(count <= 1, device=m2.device)
        whole = self.whole._replace(m2=m2.masked_fill(nothing, torch.nan))
        (commit if self.below is None else self.below.commit)(layer, self.buffers, whole)


def _is_bad(groups: list[Moments]) -> bool:
    """Whether there is NaN or infinity; not asked where the answer would have to be waited for."""
    first = groups[0].mean
    if not is_plain((first,)) or first.device.type != "cpu":
        return False
    return not all(bool(torch.isfinite(v).all()) for g in groups for v in (g.mean, g.m2))


def _finite(whole: Moments, buffers: StatisticsBuffers) -> Moments:
    """The moments, or those of nothing where they hold NaN or infinity, which is counted."""
    finite = torch.isfinite(whole.mean).all() & torch.isfinite(whole.m2).all()
    if buffers.nonfinite_batches is not None:
        buffers.nonfinite_batches.add_(~finite)
    if is_plain((finite,)) and finite.device.type == "cpu":
        nothing = Moments(0, torch.zeros_like(whole.mean), torch.zeros_like(whole.m2))
        return whole if finite else nothing
    return Moments(
        torch.as_tensor(whole.count, dtype=whole.m2.dtype, device=whole.m2.device) * finite,
        torch.where(finite, whole.mean, 0),
        torch.where(finite, whole.m2, 0),
    )

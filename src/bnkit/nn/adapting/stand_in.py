"""Layers that normalize with statistics which somebody else chooses, call by call."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm
from torch.nn.modules.batchnorm import _LazyNormBase

from bnkit.core import InputError, PolicyError
from bnkit.nn.axis.batch_norm_axis import BatchNorm
from bnkit.nn.functional import batch_norm
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.masked import _Masked
from bnkit.nn.layers.whitened import Whitened
from bnkit.nn.statistics.statistics_policy import WithPolicy, batch_norms

_TORCH_FORWARDS = (_TorchBatchNorm.forward, nn.SyncBatchNorm.forward)


class Statistics(NamedTuple):
    """What a layer normalizes with.

    Attributes:
        mean: Shape (c,).
        var: Shape (c,), biased.
    """

    mean: Tensor
    var: Tensor


class StandIn:
    """Stands in for the forward method of one batch norm.

    The layer runs as in eval mode, whatever its mode is, and finds the chosen statistics in the
    place of its buffers for the length of the call.

    Args:
        name: Qualified name of the layer.
        module: The layer.
        choose: `choose(stand_in, x)`: the statistics for this input; gradients flow through them.
    """

    def __init__(
        self, name: str, module: Any, choose: Callable[["StandIn", Tensor], Statistics]
    ) -> None:
        self.name, self.module, self.choose = name, module, choose
        self.original = module.forward
        self.ours = isinstance(module, WithPolicy)

    def __str__(self) -> str:
        kind = type(self.module).__name__
        return f"{self.name!r} ({kind})" if self.name else kind

    @property
    def running(self) -> Statistics:
        """The layer's own statistics, at least in single precision."""
        mean, var = self.module.running_mean, self.module.running_var
        return (
            Statistics(mean, var) if mean.itemsize >= 4 else Statistics(mean.float(), var.float())
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of the layer, with the chosen statistics."""
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor):
            return self.original(*args, **kwargs)  # says what is wrong
        self._check(x)
        chosen = self.choose(self, x) if x.numel() else self.running
        module: Any = self.module
        if not self.ours:
            weight, bias, eps = module.weight, module.bias, module.eps
            return batch_norm(x, *chosen, weight, bias, eps=eps, where=lambda: str(self))
        buffers, mode = module._buffers, module.training
        own = buffers["running_mean"], buffers["running_var"]
        try:
            buffers["running_mean"], buffers["running_var"] = chosen
            module.__dict__["training"] = False
            return self.original(*args, **kwargs)
        finally:
            module.__dict__["training"] = mode
            buffers["running_mean"], buffers["running_var"] = own

    def _check(self, x: Tensor) -> None:
        self.module._check_input_dim(x)
        if x.shape[1] != self.module.num_features or not x.is_floating_point():
            msg = (
                f"{self}: expected {self.module.num_features} channels of real floating point "
                f"values at dimension 1, got {x.dtype} of shape {tuple(x.shape)}. Check the layer "
                "before, or the data."
            )
            raise InputError(msg)


def adaptable(
    model: nn.Module, verb: str, only: Collection[str] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The batch norms that can take other statistics, and why the others keep theirs.

    Args:
        model: Any module.
        verb: The function that asks, for its message.
        only: Names of layers, or of parts that contain them; None = all.

    Returns:
        Layers by name; reasons by name.

    Raises:
        PolicyError: Not a module, no layer left, a name that is not there, or one that stands in
            already.
    """
    layers, kept = {}, {}
    found = batch_norms(model, verb)
    wanted = None if only is None else _names(verb, found, only)
    for name, layer in found.items():
        if isinstance(layer.__dict__.get("forward"), StandIn):
            msg = (
                f"{verb}: {name!r} already normalizes with other statistics. Leave that context "
                "first."
            )
            raise PolicyError(msg)
        reason = "it was not asked for" if wanted is not None and name not in wanted else None
        reason = reason or _why_not(layer)
        if reason is None:
            layers[name] = layer
        else:
            kept[name] = reason
    if not layers:
        why = "; ".join(f"{name!r}: {reason}" for name, reason in kept.items())
        msg = (
            f"{verb}: expected a model with batch norms that can take other statistics, got none "
            f"in {type(model).__name__}. {why or 'It has no batch norm'}."
        )
        raise PolicyError(msg)
    return layers, kept


def _names(verb: str, found: Mapping[str, Any], only: Collection[str]) -> set[str]:
    chosen: set[str] = set()
    for part in (only,) if isinstance(only, str) else only:
        within = {n for n in found if part in ("", n) or n.startswith(f"{part}.")}
        if not within:
            known = ", ".join(map(repr, found)) or "none"
            msg = (
                f"{verb}: expected names of batch norms or of parts with some, got {part!r}. The "
                f"batch norms are: {known}."
            )
            raise PolicyError(msg)
        chosen |= within
    return chosen


def _why_not(layer: Any) -> str | None:
    """Why a layer keeps its own statistics; None if it need not."""
    if isinstance(layer, _LazyNormBase):
        return "it has not seen an input; run one batch first"
    if layer.running_mean is None:
        return "it keeps no running statistics, and normalizes with the batch as it is"
    if isinstance(layer, WithPolicy) and layer.statistics_policy.normalize == "running":
        return "it is frozen"
    if isinstance(layer, (BatchNorm, _Masked, Whitened)):
        return f"the statistics of {type(layer).__name__} are of another form"
    if getattr(layer, "_part", None) is not None:
        return f"it is {layer._part}; the batch of one process is a part"
    kind: Any = type(layer)
    if issubclass(kind, BatchNormBase) or kind.forward in _TORCH_FORWARDS:
        return None
    return "its class has a forward pass of its own; call bnkit.nn.replace_(model) first"


@contextmanager
def standing_in(
    layers: Mapping[str, Any], choose: Callable[[StandIn, Tensor], Statistics]
) -> Iterator[None]:
    """Within it the layers normalize with what `choose` says; afterwards all is as it was.

    Compiled parts of a model run as they were written: their graphs know nothing of it.

    Args:
        layers: Batch norms by name, from `adaptable`.
        choose: As in `StandIn`.

    Yields:
        Nothing.
    """
    with ExitStack() as undo:
        if "torch._dynamo" in sys.modules:  # nothing is compiled otherwise; loading takes seconds
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        for name, layer in layers.items():
            before = layer.__dict__.get("forward")
            undo.callback(partial(_put_back, layer, before))
            layer.__dict__["forward"] = StandIn(name, layer, choose)
        yield


def _put_back(layer: Any, before: Any) -> None:
    layer.__dict__.pop("forward", None)
    if before is not None:
        layer.__dict__["forward"] = before

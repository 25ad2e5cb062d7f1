"""Lazy twins: the number of channels is taken from the first input."""

from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.nn.utils.rnn import PackedSequence

from bnkit.core import ConversionError
from bnkit.nn.checks import check_rank
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.layers.batch_norm_act import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from bnkit.nn.layers.differentiable import (
    DifferentiableBatchNorm1d,
    DifferentiableBatchNorm2d,
    DifferentiableBatchNorm3d,
)
from bnkit.nn.layers.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from bnkit.nn.layers.masked import MaskedBatchNorm1d, MaskedBatchNorm2d, MaskedBatchNorm3d
from bnkit.nn.layers.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from bnkit.nn.naming import qualified_name
from bnkit.nn.statistics.statistics_policy import WithPolicy
from bnkit.ops import NonFinitePolicy

# arguments of torch's layers, which its lazy ones keep themselves
_OF_TORCH = ("eps", "momentum", "affine", "track_running_stats", "device", "dtype", "bias")
_STATISTICS = ("running_mean", "running_var")


class _Lazy(WithPolicy, torch.nn.modules.batchnorm._LazyNormBase):
    """Any of our layers before it knows its channels; `cls_to_become` says which."""

    not_plain = "it has not seen its first input"
    cls_to_become: Any
    on_nonfinite: NonFinitePolicy = "skip"
    # arguments that torch's layers do not have; a layer that was torch's has none
    _options: dict[str, Any] = {}  # noqa: RUF012  never written to

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # of one channel: refuses what the layer itself would refuse, and knows the defaults
        sketch = self.cls_to_become(1, *args, **kwargs)
        like = next(chain(sketch.parameters(), sketch.buffers()), None)
        place: Any = {} if like is None else {"device": like.device, "dtype": like.dtype}
        super().__init__(
            sketch.eps,
            sketch.momentum,
            sketch.affine,
            sketch.track_running_stats,
            **place,
            bias=sketch.bias is not None,
        )
        self.on_nonfinite = sketch.on_nonfinite
        self._options = {k: v for k, v in kwargs.items() if k not in _OF_TORCH}
        for name, buffer in sketch._buffers.items():
            if name not in self._buffers:  # so that it can be loaded
                place = {"device": buffer.device, "dtype": buffer.dtype}
                blank = UninitializedBuffer(**place)  # pyright: ignore[reportCallIssue]
                self.register_buffer(name, blank)

    def initialize_parameters(self, input: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the channels of the first input, or of a state_dict that was loaded before."""
        where = partial(qualified_name, self)
        values = input.data if isinstance(input, PackedSequence) else input
        if not isinstance(values, Tensor):
            BatchNormBase._as_leaf(self, where, values, None)  # pyright: ignore[reportArgumentType]
        check_rank(where, values, self.cls_to_become.ranks)
        for name, buffer in list(self._buffers.items()):
            if name not in _STATISTICS and buffer is not None and is_lazy(buffer):
                del self._buffers[name]  # torch's reset waits until nothing is lazy
        thaw = self.__dict__.pop("_thaw", None)  # a frozen layer would not be initialized
        super().initialize_parameters(values)
        if thaw is not None:
            self.__dict__["_thaw"] = thaw
        known = next((t for t in (self.weight, self.running_mean) if t is not None), None)
        self.num_features = values.shape[1] if known is None else len(known)
        self._grow_up()

    def _grow_up(self) -> None:
        """Add what the layer has and torch's lazy one has not."""
        options = self.__dict__.pop("_options", {})
        twin = self.cls_to_become(
            self.num_features,
            eps=self.eps,
            momentum=self.momentum,
            affine=self.affine,
            track_running_stats=self.track_running_stats,
            bias=self.bias is not None,
            **options,
        )
        self.__dict__.update({k: v for k, v in twin.__dict__.items() if k not in self.__dict__})
        BatchNormBase._extend(self, self.on_nonfinite)  # pyright: ignore[reportArgumentType]
        for name, buffer in twin._buffers.items():
            if name not in self._buffers:
                self._buffers[name] = buffer.to(self.running_mean)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first call, which was looked up before the layer became one of ours."""
        return type(self).forward(self, *args, **kwargs)

    # the layer is still lazy while its first buffers are widened
    _widen_statistics = BatchNormBase._widen_statistics


class LazyBatchNorm1d(_Lazy, torch.nn.LazyBatchNorm1d):
    """`BatchNorm1d` that takes `num_features` from the first input, as torch's lazy layers do.

    Every layer of one dimension has such a twin, `LazyMaskedBatchNorm1d` and so on, with the same
    other arguments. `BatchNorm`, `SyncBatchNorm` and `DomainBatchNorm` have none: run one batch,
    then call `convert_sync_batchnorm` or `add_domains_`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.LazyBatchNorm1d()
        >>> y = layer(torch.randn(4, 3))
        >>> type(layer) is bnkit.nn.BatchNorm1d, layer.num_features
        (True, 3)
    """

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Lazy, torch.nn.LazyBatchNorm2d):
    """`BatchNorm2d` that takes `num_features` from the first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Lazy, torch.nn.LazyBatchNorm3d):
    """`BatchNorm3d` that takes `num_features` from the first input."""

    cls_to_become = BatchNorm3d


def _twin(cls: Any) -> Any:
    """The lazy twin of a layer of one dimension."""
    theirs = getattr(torch.nn, f"LazyBatchNorm{cls.__name__[-2:]}")
    body = {
        "cls_to_become": cls,
        "__doc__": f"`{cls.__name__}` that takes `num_features` from the first input.",
        "__module__": __name__,
    }
    return type(f"Lazy{cls.__name__}", (_Lazy, theirs), body)


LazyBatchNormAct1d = _twin(BatchNormAct1d)
LazyBatchNormAct2d = _twin(BatchNormAct2d)
LazyBatchNormAct3d = _twin(BatchNormAct3d)
LazyBatchRenorm1d = _twin(BatchRenorm1d)
LazyBatchRenorm2d = _twin(BatchRenorm2d)
LazyBatchRenorm3d = _twin(BatchRenorm3d)
LazyDifferentiableBatchNorm1d = _twin(DifferentiableBatchNorm1d)
LazyDifferentiableBatchNorm2d = _twin(DifferentiableBatchNorm2d)
LazyDifferentiableBatchNorm3d = _twin(DifferentiableBatchNorm3d)
LazyGhostBatchNorm1d = _twin(GhostBatchNorm1d)
LazyGhostBatchNorm2d = _twin(GhostBatchNorm2d)
LazyGhostBatchNorm3d = _twin(GhostBatchNorm3d)
LazyMaskedBatchNorm1d = _twin(MaskedBatchNorm1d)
LazyMaskedBatchNorm2d = _twin(MaskedBatchNorm2d)
LazyMaskedBatchNorm3d = _twin(MaskedBatchNorm3d)


def check_initialized(where: str, model: torch.nn.Module) -> None:
    """Raise `ConversionError` for a batch norm that does not know its channels yet."""
    for name, layer in model.named_modules():
        lazy: Any = isinstance(layer, torch.nn.modules.batchnorm._LazyNormBase) and layer
        if lazy and lazy.has_uninitialized_params():
            msg = (
                f"{where}: expected layers that know their channels, got {name!r} "
                f"({type(layer).__name__}). Run one batch through the model first."
            )
            raise ConversionError(msg)

"""Lazy twins: the number of channels is taken from the first input."""

from typing import Any

import torch
from torch import Tensor

from bnkit.core import ConversionError
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.statistics.statistics_policy import WithPolicy
from bnkit.ops import NonFinitePolicy


class _LazyExtension(WithPolicy, torch.nn.modules.batchnorm._LazyNormBase):
    """Remembers the extensions until the layer becomes one of ours."""

    def __init__(self, *args: Any, on_nonfinite: NonFinitePolicy = "skip", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_nonfinite: NonFinitePolicy = on_nonfinite

    def initialize_parameters(self, input: Tensor) -> None:
        """Take the channels of the first input."""
        if self.has_uninitialized_params():  # pyright: ignore[reportAttributeAccessIssue]
            thaw = self.__dict__.pop("_thaw", None)  # a frozen layer would not be initialized
            super().initialize_parameters(input)
            if thaw is not None:
                self.__dict__["_thaw"] = thaw
            BatchNormBase._extend(self, self.on_nonfinite)  # pyright: ignore[reportArgumentType]

    def forward(self, input: Tensor) -> Tensor:
        """The first call, which was looked up before the layer became one of ours."""
        return BatchNormBase.forward(self, input)  # pyright: ignore[reportArgumentType]

    # the layer is still lazy while its first buffers are widened
    _widen_statistics = BatchNormBase._widen_statistics


class LazyBatchNorm1d(_LazyExtension, torch.nn.LazyBatchNorm1d):
    """`BatchNorm1d` that takes `num_features` from the first input, as torch's lazy layers do.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.LazyBatchNorm1d()
        >>> y = layer(torch.randn(4, 3))
        >>> type(layer) is bnkit.nn.BatchNorm1d, layer.num_features
        (True, 3)
    """

    cls_to_become = BatchNorm1d  # pyright: ignore[reportAssignmentType]


class LazyBatchNorm2d(_LazyExtension, torch.nn.LazyBatchNorm2d):
    """`BatchNorm2d` that takes `num_features` from the first input."""

    cls_to_become = BatchNorm2d  # pyright: ignore[reportAssignmentType]


class LazyBatchNorm3d(_LazyExtension, torch.nn.LazyBatchNorm3d):
    """`BatchNorm3d` that takes `num_features` from the first input."""

    cls_to_become = BatchNorm3d  # pyright: ignore[reportAssignmentType]


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

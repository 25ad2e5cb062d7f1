"""The plain batch norm of the same inference as a `BatchNorm`."""

from typing import Any

import torch
from torch import nn

from bnkit.core import ConversionError
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d

_BY_RANK = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}


def plain_of(layer: Any, ndim: int) -> BatchNorm1d | BatchNorm2d | BatchNorm3d:
    """The plain batch norm that shares the parameters and statistics of a `BatchNorm`.

    Args:
        layer: The layer.
        ndim: Dimensions of its input, 2 to 5.

    Returns:
        A layer of the same inference.

    Raises:
        ConversionError: The channels of such input are not dimension 1 alone.
    """
    if ndim not in _BY_RANK or len(layer.axis) != 1 or layer.axis[0] not in (1, 1 - ndim):
        msg = (
            f"{type(layer).__name__}.plain: expected the channels at dimension 1 of input of 2 to "
            f"5 dimensions, got axis={layer.axis} and ndim={ndim}. Permute the input and ask for "
            "axis 1."
        )
        raise ConversionError(msg)
    features = layer.num_features[0]
    learned = layer.weight is not None or layer.bias is not None
    twin = _BY_RANK[ndim](
        features,
        layer.eps,
        layer.momentum,
        affine=learned,
        device="meta",
        bias=layer.bias is not None,
        on_nonfinite=layer.on_nonfinite,
    )
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        twin._buffers[name] = getattr(layer, name)
    if learned:
        ones = torch.ones_like(layer.running_mean if layer.bias is None else layer.bias)
        fixed = nn.Parameter(ones.detach(), requires_grad=False)
        twin.weight = fixed if layer.weight is None else layer.weight
    if layer.bias is not None:
        twin.bias = layer.bias
    twin._extend(layer.on_nonfinite)
    return twin.train(layer.training)

"""The way from a member of the family back to plain batch norm."""

from typing import Any

import torch
from torch import nn

from bnkit.core import ConversionError
from bnkit.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.naming import check_model
from bnkit.nn.replace import Replacement
from bnkit.nn.variant import Variant

_BY_RANK = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}


def plain_(model: nn.Module) -> Replacement:
    """Turn ghost batch norms and batch renormalizations into plain batch norms, in place.

    Inference gives the same numbers to the last bit; training from then on is that of plain
    batch norm. Each layer stays the same object, with its parameters, statistics and hooks; the
    reference statistics of batch renormalization are dropped.

    Args:
        model: Any module, also a layer itself.

    Returns:
        The names of the layers that changed; those of `BatchNorm` layers are kept, with the
        reason.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(bnkit.nn.BatchRenorm2d(3))
        >>> bnkit.nn.plain_(model).replaced, type(model[0]).__name__
        (('0',), 'BatchNorm2d')
    """
    check_model("plain_", model)
    replaced, kept = [], {}
    for name, layer in model.named_modules():
        if isinstance(layer, Variant):
            layer._become_plain()
            replaced.append(name)
        elif hasattr(layer, "plain") and hasattr(layer, "axis"):
            kept[name] = "its input may have any rank; put layer.plain(ndim) in its place"
    return Replacement(tuple(replaced), kept)


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

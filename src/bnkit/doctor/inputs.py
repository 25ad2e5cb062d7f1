"""What a batch norm normalizes: its input with the channels at axis 1, and what is padding."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bnkit.nn import qualified_name
from bnkit.nn.axis.channel_axes import channel_axes
from bnkit.nn.layers.masked import _keep, _Masked, _weights


class Input(NamedTuple):
    """One call of a batch norm.

    Attributes:
        values: Shape `(n, c, ...)`; several channel axes are one.
        keep: Where a value counts, bool of shape `(n, 1, ...)`; None = everywhere.
        weights: How much each counts, shape `(n, 1, ...)`; None = alike.
    """

    values: Tensor
    keep: Tensor | None = None
    weights: Tensor | None = None


def read_input(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Input | None:
    """What is in the arguments of one call.

    Args:
        layer: The batch norm; masks are those of `bnkit.nn.MaskedBatchNorm*`, axes those of
            `bnkit.nn.BatchNorm` and of whatever has an attribute `axis`.
        args: Positional arguments of the call.
        kwargs: Arguments by name.

    Returns:
        The input, or None where there is nothing to measure.

    Raises:
        InputError: A mask, weights or axes that do not fit the input.
    """
    x = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
    if isinstance(x, PackedSequence):
        x = x.data
    if not isinstance(x, Tensor) or x.ndim < 2 or x.numel() == 0:
        return None
    x = x.detach()
    if isinstance(layer, _Masked):
        return _masked(layer, x, args[1:], kwargs)
    axis = getattr(layer, "axis", 1)
    if isinstance(axis, tuple):
        sizes = tuple(x.shape[a] for a in axis if -x.ndim <= a < x.ndim)
        return Input(channel_axes(partial(qualified_name, layer), x, axis, sizes).second(x))
    if not isinstance(axis, int) or axis in (1, 1 - x.ndim):
        return Input(x)
    return Input(x.movedim(axis, 1))


def _masked(layer: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Input:
    given = dict(zip(("mask", "sample_weight"), args, strict=False)) | kwargs
    mask, weights = given.get("mask"), given.get("sample_weight")
    where = partial(qualified_name, layer)
    keep = None if mask is None else _keep(where, mask, x)
    if keep is not None:  # what stands in the padding, also NaN, has no influence
        x = torch.where(keep, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return Input(x, keep, None if weights is None else _weights(where, weights, x))

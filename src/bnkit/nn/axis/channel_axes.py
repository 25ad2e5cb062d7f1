"""Any axes of a tensor as the channels at dimension 1, and back."""

from math import prod
from typing import NamedTuple

from torch import Tensor

from bnkit.core import InputError
from bnkit.nn.layers.recipe import Where


class ChannelAxes(NamedTuple):
    """Where the channels of one tensor are.

    Attributes:
        axes: The channel axes, counted from 0, in the order of the parameters' dimensions.
        order: The permutation that brings the channels behind the first other axis.
        shape: The shape of the tensor.
    """

    axes: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def second(self, x: Tensor) -> Tensor:
        """`x` as `(n, channels, ...)`: a view where the channels are one axis."""
        if self.axes == (1,):
            return x
        moved = x.permute(self.order)
        k = len(self.axes)
        if k == 1:
            return moved
        return moved.reshape(moved.shape[0], prod(moved.shape[1 : 1 + k]), *moved.shape[1 + k :])

    def back(self, y: Tensor, like: Tensor) -> Tensor:
        """The inverse of `second`, contiguous where `like` is."""
        if self.axes == (1,):
            return y
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        y = y.reshape([self.shape[a] for a in self.order]).permute(inverse)
        return y.contiguous() if like.is_contiguous() else y

    def spread(self, parameter: Tensor) -> Tensor:
        """A parameter, reshaped to broadcast against `x`."""
        ascending = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        kept = [self.shape[a] if a in self.axes else 1 for a in range(len(self.shape))]
        return parameter.permute(ascending).reshape(kept)


def channel_axes(
    where: Where, x: Tensor, axis: tuple[int, ...], features: tuple[int, ...]
) -> ChannelAxes:
    """Find the channel axes of a tensor.

    Args:
        where: Called for the name at the head of an error message.
        x: The input.
        axis: The axes as the user wrote them, negative ones counted from the end.
        features: The sizes that they must have.

    Returns:
        Where the channels are.

    Raises:
        InputError: An axis that the input does not have, the same axis twice, no axis left to
            average over, or other sizes.
    """
    if not all(-x.ndim <= a < x.ndim for a in axis):
        msg = (
            f"{where()}: expected axis={_plain(axis)} within the {x.ndim} dimensions of the "
            f"input, got shape {tuple(x.shape)}. Choose the axis of the channels."
        )
        raise InputError(msg)
    axes = tuple(a % x.ndim for a in axis)
    others = [a for a in range(x.ndim) if a not in axes]
    if len(set(axes)) < len(axes) or not others:
        msg = (
            f"{where()}: expected axis={_plain(axis)} to name different axes and to leave one to "
            f"average over, got input of shape {tuple(x.shape)}."
        )
        raise InputError(msg)
    if tuple(x.shape[a] for a in axes) != features:
        msg = (
            f"{where()}: expected input with {_plain(features)} channels at axis {_plain(axis)}, "
            f"got shape {tuple(x.shape)}. Set num_features, or check axis and the layer before."
        )
        raise InputError(msg)
    return ChannelAxes(axes, (others[0], *axes, *others[1:]), tuple(x.shape))


def _plain(numbers: tuple[int, ...]) -> int | tuple[int, ...]:
    return numbers[0] if len(numbers) == 1 else numbers

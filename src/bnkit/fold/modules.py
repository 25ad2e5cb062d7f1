"""What stands where a batch norm stood: a module that does less."""

from typing import Any

import torch
from torch import Tensor, nn

from bnkit.core.errors import InputError
from bnkit.nn.naming import qualified_name
from bnkit.ops import IDENTITY, Activation

_SMALL = 1 << 17  # values; below, two elementwise operations cost less than one batch norm call


class Folded(nn.Identity):
    """A batch norm that was folded into a neighbour: nothing is left of it but what it refused.

    Args:
        ndim: Dimensions its input must have. With others, torch's layer would have raised, or
            normalized another axis than the one that was folded.
    """

    def __init__(self, ndim: tuple[int, ...]) -> None:
        super().__init__()
        self.ndim = ndim

    def forward(self, input: Tensor) -> Tensor:
        """The input itself."""
        if self.ndim and input.ndim not in self.ndim:
            _refuse(self, input)
        return input

    def extra_repr(self) -> str:
        """The dimensions of the input."""
        return f"ndim={self.ndim}"


class FoldedAct(Folded):
    """A folded `BatchNormAct`: the residual sum and the activation are left.

    Args:
        ndim: As in `Folded`.
        act: The activation.
    """

    def __init__(self, ndim: tuple[int, ...], act: Activation) -> None:
        super().__init__(ndim)
        self.act = act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """`act(input + residual)`."""
        return _acted(super().forward(input), residual, self.act)

    def extra_repr(self) -> str:
        """The dimensions and the activation."""
        return f"{super().extra_repr()}, act={self.act.name}"


class ScaleShift(nn.Module):
    """`act(x * scale + shift + residual)`: an evaluated batch norm that had no neighbour.

    Args:
        scale: One per channel.
        shift: One per channel.
        axis: Dimension of the channels.
        ndim: As in `Folded`.
        act: The activation.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        scale: Tensor,
        shift: Tensor,
        axis: int = 1,
        ndim: tuple[int, ...] = (),
        act: Activation = IDENTITY,
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("_zero", torch.zeros_like(scale), persistent=False)
        self.register_buffer("_one", torch.ones_like(scale), persistent=False)
        self.axis, self.ndim, self.act = axis, ndim, act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Scale, shift, add the residual, activate."""
        if self.ndim and input.ndim not in self.ndim:
            _refuse(self, input)
        return _acted(self._affine(input), residual, self.act)

    def _affine(self, x: Tensor) -> Tensor:
        scale, shift = self.scale, self.shift
        # torch's own kernel is the fastest for large contiguous input, and takes mixed dtypes
        large = x.numel() > _SMALL and x.is_contiguous()
        if self.axis == 1 and (large or x.dtype != scale.dtype):
            zero, one = (self._buffers["_zero"], self._buffers["_one"])
            return nn.functional.batch_norm(x, zero, one, scale, shift, eps=0.0)
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return torch.addcmul(shift.view(shape), x, scale.view(shape))

    def extra_repr(self) -> str:
        """Channels, and the activation if there is one."""
        act = f", act={self.act.name}" if self.act.name != "none" else ""
        return f"{self.scale.numel()}{act}"


class ChannelPad(nn.Module):
    """Padding with one value per channel: zeros behind a batch norm are not zeros before it.

    Args:
        values: One per channel.
        padding: Before and after each spatial dimension, the last dimension first, as in
            `torch.nn.functional.pad`.
    """

    values: Tensor

    def __init__(self, values: Tensor, padding: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.padding = padding

    def forward(self, input: Tensor) -> Tensor:
        """The input, with a border of the values."""
        spatial = len(self.padding) // 2
        if input.ndim != spatial + 2:
            _refuse(self, input)
        pairs = [self.padding[2 * i : 2 * i + 2] for i in reversed(range(spatial))]
        sizes = [n + sum(p) for n, p in zip(input.shape[2:], pairs, strict=True)]
        channels_last = (torch.channels_last, torch.channels_last_3d)[spatial == 3]
        last = spatial > 1 and input.is_contiguous(memory_format=channels_last)
        out = torch.empty(
            (*input.shape[:2], *sizes),
            dtype=input.dtype,
            device=input.device,
            memory_format=channels_last if last else torch.contiguous_format,
        )
        out.copy_(self.values.to(input.dtype).view(1, -1, *[1] * spatial).expand_as(out))
        inside = tuple(slice(p[0], p[0] + n) for p, n in zip(pairs, input.shape[2:], strict=True))
        out[(slice(None), slice(None), *inside)] = input
        return out

    def extra_repr(self) -> str:
        """Channels and widths."""
        return f"{self.values.numel()}, padding={self.padding}"


def _acted(x: Tensor, residual: Tensor | None, act: Activation) -> Tensor:
    return act(x if residual is None else x + residual)


def _refuse(layer: Any, input: Tensor) -> None:
    spatial = len(layer.padding) // 2 + 2 if isinstance(layer, ChannelPad) else layer.ndim
    msg = (
        f"{qualified_name(layer)}: expected input with {spatial} dimensions, as when the batch "
        f"norm here was folded, got shape {tuple(input.shape)}. Fold with such an example."
    )
    raise InputError(msg)

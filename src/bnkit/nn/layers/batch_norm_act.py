"""Batch norm, a residual sum and an activation in one pass over memory."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from bnkit.core import SpecError
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.ops import activation, invertible

Values = Float[Tensor, "n c *spatial"]


class _WithActivation(BatchNormBase):
    """Adds the activation to a layer; its state_dict is that of the plain batch norm."""

    not_plain = "its activation and the residual would be lost; write them as layers of their own"

    def __init__(
        self,
        *args: Any,
        act: str | nn.Module | None = "relu",
        inplace: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.act = activation(act)
        self.inplace = inplace
        if inplace and not invertible(self.act):
            msg = (
                f"{type(self).__name__}: inplace=True needs an activation that can be inverted, "
                f"'none' or 'leaky_relu' with a positive slope, got {self.act.name!r}: the input "
                "is computed from the output for the backward pass."
            )
            raise SpecError(msg)

    def forward(self, input: Values, residual: Values | None = None) -> Values:
        """`act(batch_norm(input) + residual)`."""
        return self._normalize(input, residual, self.act)

    def extra_repr(self) -> str:
        """As the plain layer, with the activation."""
        slope = f"({self.act.slope:g})" if self.act.name == "leaky_relu" else ""
        place = ", inplace=True" if self.inplace else ""
        return f"{super().extra_repr()}, act={self.act.name}{slope}{place}"


class BatchNormAct2d(_WithActivation, BatchNorm2d):
    """`act(batch_norm(x) + residual)` over `(N, C, H, W)`; otherwise as `BatchNorm2d`.

    What three layers write to memory and read again is computed in one pass, and the backward
    pass keeps no output and no mask: it computes the sign before the activation again from the
    input.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Weight of the new batch in the running statistics; None = cumulative average.
        affine: Learn a weight and a bias.
        track_running_stats: Keep running statistics.
        device: Device of parameters and buffers.
        dtype: Dtype of the parameters.
        bias: Learn a bias, where `affine`.
        on_nonfinite: As in `BatchNorm2d`.
        act: `"relu"`, `"relu6"`, `"leaky_relu"`, `"silu"`, `"none"` or the torch module of one of
            them.
        inplace: In training, write the output over the input and compute the input again for the
            backward pass: one array less is kept for each layer. For `"none"` and `"leaky_relu"`.
            A call whose input cannot be written over or recovered (a leaf, a view, 16 bits,
            weights near zero: `bnkit.ops.not_in_place` names it) is computed as usual.

    Raises:
        SpecError: Another activation, or `inplace` with one that has no inverse.
        InputError: As in `BatchNorm2d`, or a residual that is not shaped like the input.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchNormAct2d(3, act=torch.nn.LeakyReLU(0.1))
        >>> x, shortcut = torch.randn(2, 4, 3, 5, 5)
        >>> plain = torch.nn.BatchNorm2d(3)
        >>> expected = torch.nn.functional.leaky_relu(plain(x) + shortcut, 0.1)
        >>> torch.allclose(layer(x, shortcut), expected, atol=1e-5)
        True
    """


class BatchNormAct1d(_WithActivation, BatchNorm1d):
    """`act(batch_norm(x) + residual)` over `(N, C)` or `(N, C, L)`; as `BatchNormAct2d`."""


class BatchNormAct3d(_WithActivation, BatchNorm3d):
    """`act(batch_norm(x) + residual)` over `(N, C, D, H, W)`; as `BatchNormAct2d`."""

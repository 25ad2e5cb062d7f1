"""Batch norm that leaves padding out of its statistics, and weighs samples."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bnkit.core import InputError
from bnkit.nn.checks import check_rank
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.naming import qualified_name
from bnkit.nn.parts.pooled import train_on_part
from bnkit.ops import Kept, on_kept, takes_mask
from bnkit.ops.plain import has_tangents, is_plain

Where = Callable[[], str]
Values = Float[Tensor, "n c *spatial"]


class _Masked(BatchNormBase):
    """What the masked layers add to the plain ones."""

    not_plain = (
        "without a mask it is plain batch norm, and with one its caller passes what a plain layer "
        "does not take"
    )

    def forward(
        self,
        input: Values | PackedSequence,
        mask: Bool[Tensor, "..."] | None = None,
        sample_weight: Float[Tensor, "..."] | None = None,
    ) -> Any:
        """Normalize by the statistics of what `mask` keeps, each value weighed."""
        where = partial(qualified_name, self)
        if isinstance(input, PackedSequence):
            return self._packed(where, input, mask, sample_weight)
        if isinstance(input, torch.fx.Proxy):
            tracer: Any = input.tracer
            given = (input, mask, sample_weight)
            return tracer.create_proxy("call_module", tracer.path_of_module(self), given, {})
        if (mask is None and sample_weight is None) or not isinstance(input, Tensor):
            return self._normalize(input)
        check_rank(where, input, self.ranks)
        keep = None if mask is None else _keep(where, mask, input)
        weights = None if sample_weight is None else _weights(where, sample_weight, input)
        training = self.training and self._policy.normalize == "batch"
        batch_statistics = training or self.running_mean is None
        if not batch_statistics:
            return self._normalize(input) if keep is None else _only(keep, self._normalize, input)
        if keep is None:
            return train_on_part(self, input, sample_weights=weights)
        if has_tangents() or not is_plain((input, keep, weights)):
            # the number of kept values must not be a shape
            counted = keep.to(input.real.dtype)
            weights = counted if weights is None else weights * counted
            normalize = partial(train_on_part, self, sample_weights=weights)
            return _only(keep, normalize, input)
        return self._unpadded(where, input, keep, weights)

    def _unpadded(
        self, where: Where, input: Tensor, keep: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Batch norm of the kept positions alone, and zeros elsewhere."""
        count = int(torch.count_nonzero(keep))
        if weights is None and count == keep.numel():
            return self._normalize(input)
        if not count and input.numel() and self._part is None:
            msg = (
                f"{where()}: expected a mask that keeps a position, got one that is all False, for "
                f"input of shape {tuple(input.shape)}. True marks what is there, not the padding."
            )
            raise InputError(msg)
        if weights is None and self._part is None and takes_mask(input, self.weight, self.bias):
            return train_on_part(self, input, kept=Kept(keep.contiguous(), count))
        if weights is not None:
            spread = weights.expand(input.shape[0], 1, *input.shape[2:])
            weights = spread.movedim(1, -1)[keep.squeeze(1)]
        return on_kept(input, keep, partial(train_on_part, self, sample_weights=weights))

    def _packed(
        self, where: Where, input: PackedSequence, mask: Any, sample_weight: Any
    ) -> PackedSequence:
        if mask is not None or 2 not in self.ranks:
            problem = f"a {type(mask).__name__} as mask" if mask is not None else "a PackedSequence"
            msg = (
                f"{where()}: expected a tensor, or a PackedSequence without a mask in "
                f"MaskedBatchNorm1d, got {problem}. A PackedSequence holds no padding."
            )
            raise InputError(msg)
        y = self.forward(input.data, sample_weight=sample_weight)
        rest = input.batch_sizes, input.sorted_indices, input.unsorted_indices
        return PackedSequence(y, *rest)  # pyright: ignore[reportArgumentType]


class MaskedBatchNorm1d(_Masked, BatchNorm1d):
    """`BatchNorm1d` for sequences of unequal length: `layer(x, mask)`.

    The statistics are those of the positions where `mask` is True, so that output, gradients
    and running statistics equal those of batch norm on the values without padding. **At masked
    positions the output is 0**, in training and in eval, the gradient by the input is 0, and
    what stands there, also NaN, has no influence.

    `sample_weight` weighs values in the statistics (theory page, equations 1 and 2). The weights
    are counts, so that a sample of weight 2 counts like two equal samples; they should add up to
    about the number of samples. Unlike a masked position, one of weight 0 is normalized like
    all others. Weights are constants for autograd.

    Without `mask` and `sample_weight` it is `BatchNorm1d`, and its state_dict is the same. Under
    `convert_sync_batchnorm` the counts and weights of all processes add up.

    `x` is `(N, C)` or `(N, C, L)`, or a `PackedSequence`, which holds no padding and comes back
    packed. `mask` is `(N,)` or `(N, L)`, also with a channel dimension of size 1; bool, or
    integers where 0 is padding (the `attention_mask` of other libraries; torch's
    `key_padding_mask` is the negation). `sample_weight` is shaped like a mask, or `(N,)`.

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

    Raises:
        InputError: As in `BatchNorm1d`; a mask or weights of wrong shape, dtype or device; a mask
            that keeps nothing; negative weights, or weights that add up to 1 or less.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.MaskedBatchNorm1d(1)
        >>> x = torch.tensor([[[1.0, 3.0]], [[5.0, float("nan")]]])
        >>> layer(x, torch.tensor([[True, True], [True, False]])).round(decimals=2).tolist()
        [[[-1.22..., 0.0]], [[1.22..., 0.0]]]
        >>> round(float(layer.running_mean), 4)  # 0.1 times the mean of 1, 3 and 5
        0.3
    """


class MaskedBatchNorm2d(_Masked, BatchNorm2d):
    """As `MaskedBatchNorm1d`, over `(N, C, H, W)` with a mask `(N, H, W)`."""


class MaskedBatchNorm3d(_Masked, BatchNorm3d):
    """As `MaskedBatchNorm1d`, over `(N, C, D, H, W)` with a mask `(N, D, H, W)`."""


def _only(keep: Tensor, normalize: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """Normalize the whole tensor, with zeros where nothing is, before and behind."""
    zero = input.new_zeros(())
    return torch.where(keep, normalize(torch.where(keep, input, zero)), zero)


def _keep(where: Where, mask: Tensor, input: Tensor) -> Tensor:
    """The mask as bool `(n, 1, *spatial)`."""
    mask = _spread(where, "mask", mask, input)
    if mask.is_floating_point() or mask.is_complex():
        msg = (
            f"{where()}: expected a mask of bool or integers, got {mask.dtype}. Compare it first, "
            "e.g. mask > 0, or give it as sample_weight."
        )
        raise InputError(msg)
    return mask if mask.dtype is torch.bool else mask != 0


def _weights(where: Where, weights: Tensor, input: Tensor) -> Tensor:
    """The weights as `(n, 1, *spatial)`, or `(n, 1, .., 1)`."""
    if isinstance(weights, Tensor) and weights.shape == input.shape[:1]:
        weights = weights.reshape(-1, *(1,) * (input.ndim - 2)).expand(-1, *input.shape[2:])
    weights = _spread(where, "sample_weight", weights, input)
    if weights.requires_grad or weights.is_complex():
        msg = (
            f"{where()}: expected real sample weights that are constants, got {weights.dtype} with "
            f"requires_grad={weights.requires_grad}. Call .detach() on them."
        )
        raise InputError(msg)
    if is_plain((weights,)) and weights.device.type == "cpu" and not bool((weights >= 0).all()):
        msg = f"{where()}: expected sample weights >= 0, got negative or NaN ones. Clamp them."
        raise InputError(msg)
    return weights


def _spread(where: Where, name: str, given: Any, input: Tensor) -> Tensor:
    batch, spatial = input.shape[0], tuple(input.shape[2:])
    if isinstance(given, Tensor) and given.device == input.device:
        if tuple(given.shape) == (batch, *spatial):
            return given.unsqueeze(1)
        if tuple(given.shape) == (batch, 1, *spatial):
            return given
    got = f"a {type(given).__name__}, which torch.as_tensor would make a tensor"
    if isinstance(given, Tensor):
        got = f"{tuple(given.shape)} on {given.device}"
    msg = (
        f"{where()}: expected a {name} of shape {(batch, *spatial)} on {input.device}, one entry a "
        f"position of the input of shape {tuple(input.shape)}, got {got}. Was the sequence "
        "shortened by a layer before? Shorten the mask in the same way."
    )
    raise InputError(msg)

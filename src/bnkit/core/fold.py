"""Folding: an evaluated batch norm is `x * scale + shift`, and a linear map beside it takes both.

Everything is computed in float64 whatever the storage dtype, so that several batch norms can be
folded into one map and the result be rounded once, by `rounded`. With a map `W u + b`,

    left (the map comes first):   scale (W u + b) + shift = (scale W) u + (scale b + shift)
    right (the map comes last):   W (scale x + shift) + b = (W scale) x + (b + sum_k W_k shift)

where `sum_k` runs over the positions of a kernel. The right form needs every position to see
`shift`: a border padded with zeros does not, a border padded with `pad_values` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bnkit.core.errors import InputError
from bnkit.core.normalize import invstd, scale_shift

Array = Any


class Affine(NamedTuple):
    """What an evaluated batch norm does: `x * scale + shift`, float64, shape `(c,)`."""

    scale: Array
    shift: Array


class FoldedMap(NamedTuple):
    """Weight and bias of a linear map that does the work of a batch norm too, in float64."""

    weight: Array
    bias: Array


class EquivalentState(NamedTuple):
    """The state of a batch norm that changes nothing in inference, in float64, shape `(c,)`."""

    running_mean: Array
    running_var: Array
    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Where the channels are in the weight of a linear map.

    Convolution and linear layers keep `(out, in / groups, *kernel)`; transposed convolutions, and
    ONNX's MatMul and Gemm without `transB`, keep `(in, out / groups, *kernel)`.

    Attributes:
        groups: Groups of a convolution; depthwise ones have as many as channels.
        transposed: Whether input channels come first.
    """

    groups: int = 1
    transposed: bool = False

    def out_channels(self, shape: Sequence[int]) -> int:
        """Output channels of a weight of this shape."""
        return shape[1] * self.groups if self.transposed else shape[0]

    def in_channels(self, shape: Sequence[int]) -> int:
        """Input channels of a weight of this shape."""
        return shape[0] if self.transposed else shape[1] * self.groups


LINEAR = WeightLayout()


def inference_affine(
    xp: Any,
    statistics: tuple[Array, Array],
    weight: Array | None,
    bias: Array | None,
    eps: float,
) -> Affine:
    """Scale and shift of an evaluated batch norm, computed in float64: equation 16.

    Args:
        xp: The array namespace.
        statistics: Running mean and running variance, shape `(c,)`, any real dtype.
        weight: Scale of the batch norm, or None for 1.
        bias: Shift of the batch norm, or None for 0.
        eps: Added to the variance.

    Returns:
        The affine form.

    Raises:
        InputError: A variance plus eps is not positive, or a number is not finite.

    Example:
        >>> import numpy as np
        >>> one = np.ones(1, np.float32)
        >>> inference_affine(np, (2 * one, 4 * one), None, one, 0.0)
        Affine(scale=array([0.5]), shift=array([0.]))
    """
    mean, var = (wide(xp, s) for s in statistics)
    if not bool(xp.all(var + eps > 0)):
        msg = "running_var + eps: expected positive values, got zero, a negative one or NaN"
        raise InputError(msg)
    weight, bias = (None if v is None else wide(xp, v) for v in (weight, bias))
    affine = Affine(*scale_shift(xp, (mean, var), weight, bias, eps))
    if not bool(xp.all(xp.isfinite(affine.scale) & xp.isfinite(affine.shift))):
        msg = "statistics, weight and bias: expected finite values, got NaN or infinity"
        raise InputError(msg)
    return affine


def compose(first: Affine, second: Affine) -> Affine:
    """The one affine form of two that follow each other."""
    return Affine(first.scale * second.scale, first.shift * second.scale + second.shift)


def split(affine: Affine, sizes: Sequence[int]) -> list[Affine]:
    """The parts of an affine form that belong to concatenated inputs.

    Args:
        affine: The form of the whole.
        sizes: Channels of each input, in order.

    Returns:
        One form per input.

    Raises:
        InputError: The sizes do not add up to the channels.
    """
    if sum(sizes) != affine.scale.shape[0]:
        msg = f"split: expected {affine.scale.shape[0]} channels in all, got {list(sizes)}"
        raise InputError(msg)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        Affine(affine.scale[s : s + n], affine.shift[s : s + n])
        for s, n in zip(starts, sizes, strict=True)
    ]


def fold_left(
    xp: Any, weight: Array, bias: Array | None, affine: Affine, layout: WeightLayout = LINEAR
) -> FoldedMap:
    """Fold an affine form into the linear map *before* it: `(scale W) u + (scale b + shift)`.

    Args:
        xp: The array namespace.
        weight: Weight of the map, as `layout` says.
        bias: Bias of the map, shape `(out,)`, or None for 0.
        affine: The form, one entry per output channel.
        layout: Where the channels are.

    Returns:
        Weight and bias in float64, not rounded yet.

    Raises:
        InputError: The channels do not match.

    Example:
        >>> import numpy as np
        >>> twice = Affine(np.full(1, 2.0), np.full(1, 5.0))
        >>> fold_left(np, np.full((1, 1), 3.0), np.ones(1), twice)
        FoldedMap(weight=array([[6.]]), bias=array([7.]))
    """
    _expect("output", layout.out_channels(weight.shape), affine)
    scaled = wide(xp, weight) * _along_outputs(xp, affine.scale, weight, layout)
    moved = affine.shift if bias is None else wide(xp, bias) * affine.scale + affine.shift
    return FoldedMap(scaled, moved)


def fold_right(
    xp: Any, weight: Array, bias: Array | None, affine: Affine, layout: WeightLayout = LINEAR
) -> FoldedMap:
    """Fold an affine form into the linear map *after* it: `(W scale) x + (b + sum_k W_k shift)`.

    The bias takes the sum over all positions of the kernel. It is exact where each output sees
    each of them once: linear maps, convolutions without zero padding, transposed convolutions
    with a kernel of one position.

    Args:
        xp: The array namespace.
        weight: Weight of the map, as `layout` says.
        bias: Bias of the map, shape `(out,)`, or None for 0.
        affine: The form, one entry per input channel.
        layout: Where the channels are.

    Returns:
        Weight and bias in float64, not rounded yet.

    Raises:
        InputError: The channels do not match.
    """
    _expect("input", layout.in_channels(weight.shape), affine)
    wide_weight = wide(xp, weight)
    scaled = wide_weight * _along_inputs(xp, affine.scale, weight, layout)
    shifted = wide_weight * _along_inputs(xp, affine.shift, weight, layout)
    moved = _sum_to_outputs(xp, shifted, layout)
    return FoldedMap(scaled, moved if bias is None else moved + wide(xp, bias))


def pad_values(xp: Any, affine: Affine) -> Array:
    """What to pad the *input* of a batch norm with where its output was padded with zeros.

    `scale * value + shift = 0`, so `value = -shift / scale` per channel.

    Args:
        xp: The array namespace.
        affine: The form of the batch norm.

    Returns:
        The values, float64, shape `(c,)`.

    Raises:
        InputError: A channel has scale 0 and another shift: nothing makes it 0.
    """
    dead = affine.scale == 0
    if bool(xp.any(dead & (affine.shift != 0))):
        msg = "pad_values: expected channels with a scale, got scale 0 with a shift"
        raise InputError(msg)
    one = xp.ones_like(affine.scale)
    values = -affine.shift / xp.where(dead, one, affine.scale) + 0.0
    if not bool(xp.all(xp.isfinite(values))):
        msg = "pad_values: expected finite values, got a shift too large for its scale"
        raise InputError(msg)
    return values


def border_error(xp: Any, weight: Array, shift: Array, layout: WeightLayout = LINEAR) -> float:
    """Bound on the error at the border when a shift is folded through padding with zeros.

    An output at the border misses some positions of the kernel, and with them their part of
    `sum_k W_k shift`; the bound is `max_out sum_k |sum_in W shift|`.

    Args:
        xp: The array namespace.
        weight: Weight of the map that pads.
        shift: Shift of the batch norm before it, shape `(in,)`.
        layout: Where the channels are.

    Returns:
        The bound, in units of the output.
    """
    shifted = wide(xp, weight) * _along_inputs(xp, wide(xp, shift), weight, layout)
    by_group = _grouped(xp, shifted, layout)
    kernel = tuple(range(3, by_group.ndim))
    per_position = xp.abs(xp.sum(by_group, axis=1 if layout.transposed else 2, keepdims=True))
    return float(xp.max(xp.sum(per_position, axis=kernel) if kernel else per_position))


def equivalent_state(
    xp: Any,
    statistics: tuple[Array, Array],
    weight: Array | None,
    bias: Array | None,
    eps: float,
) -> EquivalentState:
    """The batch norm to put behind a folded map, to train on: in inference it changes nothing.

    The folded map puts out what the batch norm put out, so its running mean is the old bias and
    its running variance `weight^2 var / (var + eps)`. With these as statistics, and
    `weight = sqrt(running_var + eps)`, `bias = running_mean`, the layer is the identity in
    inference, and in training it normalizes with the batch as the old one did.

    Args:
        xp: The array namespace.
        statistics: Running mean and running variance of the folded batch norm.
        weight: Its scale, or None for 1.
        bias: Its shift, or None for 0.
        eps: Its eps, and that of the new one.

    Returns:
        The state of the new batch norm.
    """
    mean, var = (wide(xp, s) for s in statistics)
    scale = invstd(xp, var, eps)
    scale = scale if weight is None else scale * wide(xp, weight)
    running_var = var * scale * scale
    running_mean = xp.zeros_like(mean) if bias is None else wide(xp, bias)
    return EquivalentState(running_mean, running_var, xp.sqrt(running_var + eps), running_mean)


def channel_ranges(xp: Any, weight: Array, layout: WeightLayout = LINEAR) -> Array:
    """Largest magnitude of the weight of each output channel: what quantization has to span.

    Args:
        xp: The array namespace.
        weight: Weight of the map.
        layout: Where the channels are.

    Returns:
        Ranges, float64, shape `(out,)`.
    """
    by_group = xp.abs(_grouped(xp, wide(xp, weight), layout))
    out = 2 if layout.transposed else 1
    others = tuple(a for a in range(1, by_group.ndim) if a != out)
    return xp.reshape(xp.max(by_group, axis=others), (-1,))


def spread(xp: Any, ranges: Array) -> float:
    """Largest over median of the ranges of channels: rule BN707 warns above 10.

    Args:
        xp: The array namespace.
        ranges: What `channel_ranges` gave.

    Returns:
        The ratio; infinity where more than half of the channels are zero and others are not.
    """
    ordered = xp.sort(ranges)
    n = ordered.shape[0]
    largest = float(ordered[n - 1])
    median = (float(ordered[(n - 1) // 2]) + float(ordered[n // 2])) / 2
    if median == 0:
        return 1.0 if largest == 0 else float("inf")
    return largest / median


def rounded(xp: Any, values: Array, dtype: Any) -> Array:
    """Values in their storage dtype, rounded once.

    Args:
        xp: The array namespace.
        values: float64 values.
        dtype: The storage dtype.

    Returns:
        The values in that dtype.

    Raises:
        InputError: A value overflows the dtype.
    """
    stored = xp.astype(values, dtype)
    if bool(xp.any(xp.isfinite(values) & ~xp.isfinite(stored))):
        largest = float(xp.max(xp.abs(values)))
        msg = f"folded values: expected magnitudes within {dtype}, got {largest}"
        raise InputError(msg)
    return stored


def wide(xp: Any, values: Array) -> Array:
    """Values in float64."""
    return xp.astype(values, xp.float64)


def _expect(side: str, channels: int, affine: Affine) -> None:
    if affine.scale.shape[0] != channels:
        msg = (
            f"fold: expected one scale for each of the {channels} {side} channels of the map, "
            f"got {affine.scale.shape[0]}"
        )
        raise InputError(msg)


def _grouped(xp: Any, weight: Array, layout: WeightLayout) -> Array:
    """The weight as `(groups, first / groups, second, *kernel)`."""
    g = layout.groups
    return xp.reshape(weight, (g, weight.shape[0] // g, *weight.shape[1:]))


def _along_outputs(xp: Any, values: Array, weight: Array, layout: WeightLayout) -> Array:
    """One value per output channel, to multiply the weight with."""
    return (_along_second if layout.transposed else _along_first)(xp, values, weight, layout)


def _along_inputs(xp: Any, values: Array, weight: Array, layout: WeightLayout) -> Array:
    """One value per input channel, to multiply the weight with."""
    return (_along_first if layout.transposed else _along_second)(xp, values, weight, layout)


def _along_first(xp: Any, values: Array, weight: Array, layout: WeightLayout) -> Array:
    del layout  # groups lie along the first dimension already
    return xp.reshape(values, (weight.shape[0],) + (1,) * (weight.ndim - 1))


def _along_second(xp: Any, values: Array, weight: Array, layout: WeightLayout) -> Array:
    first, second = weight.shape[:2]
    each = xp.reshape(values, (layout.groups, 1, second))
    rows = xp.broadcast_to(each, (layout.groups, first // layout.groups, second))
    return xp.reshape(rows, (first, second) + (1,) * (weight.ndim - 2))


def _sum_to_outputs(xp: Any, values: Array, layout: WeightLayout) -> Array:
    """The sum over input channels and kernel positions, shape `(out,)`."""
    by_group = _grouped(xp, values, layout)
    out = 2 if layout.transposed else 1
    others = tuple(a for a in range(1, by_group.ndim) if a != out)
    return xp.reshape(xp.sum(by_group, axis=others), (-1,))

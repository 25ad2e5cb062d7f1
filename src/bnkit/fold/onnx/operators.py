"""Operators for the reference evaluator of ONNX, where its own are wrong or very slow."""

import math
from collections.abc import Sequence

import numpy as np

from bnkit.core.normalize import normalize

Array = np.ndarray


def batch_norm(x: Array, parameters: Sequence[Array], eps: float) -> Array:
    """BatchNormalization in inference form: `(x - mean) / sqrt(var + eps) * scale + bias`.

    The evaluator's own takes the statistics of the batch below opset 14 (onnx issue 5799).

    Args:
        x: Shape `(n, c, ...)`.
        parameters: Scale, bias, mean and variance, shape `(c,)`; or `(c, ...)` for spatial=0.
        eps: Added to the variance.

    Returns:
        As `x`.
    """
    behind = (1,) * (x.ndim - 1 - parameters[0].ndim)
    scale, bias, mean, var = (v.reshape(v.shape + behind) for v in parameters)
    invstd = 1 / np.sqrt(var + np.asarray(eps, var.dtype))
    return normalize(x, mean, scale * invstd, bias).astype(x.dtype)


def convolve(
    x: Array,
    weight: Array,
    *,
    pads: Sequence[tuple[int, int]],
    strides: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Array:
    """Conv: one matrix product for each position of the kernel.

    Args:
        x: Shape `(n, c, *space)`.
        weight: Shape `(out, c / group, *kernel)`.
        pads: Zeros before and behind each axis.
        strides: Of each axis.
        dilations: Of each axis.
        group: Groups of channels.

    Returns:
        Shape `(n, out, *space)`.
    """
    kernel = weight.shape[2:]
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    sizes = [
        (s - (k - 1) * d - 1) // t + 1
        for s, k, d, t in zip(padded.shape[2:], kernel, dilations, strides, strict=True)
    ]
    out, inside = weight.shape[0] // group, weight.shape[1]
    total = np.zeros((x.shape[0], group, out, math.prod(sizes)), x.dtype)
    for tap in np.ndindex(*kernel):
        places = _places(tap, sizes, strides, dilations)
        part = padded[(slice(None), slice(None), *places)]
        by_group = weight[(slice(None), slice(None), *tap)].reshape(group, out, inside)
        total += by_group @ part.reshape(x.shape[0], group, inside, -1)
    return total.reshape(x.shape[0], -1, *sizes)


def convolve_transposed(
    x: Array,
    weight: Array,
    *,
    pads: Sequence[tuple[int, int]],
    strides: Sequence[int],
    dilations: Sequence[int],
    group: int,
    output_padding: Sequence[int],
) -> Array:
    """ConvTranspose: each position of the kernel adds to every `stride`-th place.

    The evaluator's own cannot take groups.

    Args:
        x: Shape `(n, c, *space)`.
        weight: Shape `(c, out / group, *kernel)`.
        pads: What is cut off before and behind each axis.
        strides: Of each axis.
        dilations: Of each axis.
        group: Groups of channels.
        output_padding: Places added behind each axis.

    Returns:
        Shape `(n, out, *space)`.
    """
    kernel, space = weight.shape[2:], x.shape[2:]
    full = [
        (s - 1) * t + (k - 1) * d + 1 + o
        for s, k, d, t, o in zip(space, kernel, dilations, strides, output_padding, strict=True)
    ]
    out, inside = weight.shape[1], weight.shape[0] // group
    total = np.zeros((x.shape[0], group * out, *full), x.dtype)
    by_group = x.reshape(x.shape[0], group, inside, -1)
    for tap in np.ndindex(*kernel):
        matrix = weight[(slice(None), slice(None), *tap)].reshape(group, inside, out)
        part = (matrix.swapaxes(1, 2) @ by_group).reshape(x.shape[0], -1, *space)
        total[(slice(None), slice(None), *_places(tap, space, strides, dilations))] += part
    ends = [n - b for n, (_, b) in zip(full, pads, strict=True)]
    cut = [slice(a, end) for (a, _), end in zip(pads, ends, strict=True)]
    return total[(slice(None), slice(None), *cut)]


def _places(
    tap: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[slice]:
    """Where a position of the kernel meets the values."""
    return [
        slice(k * d, k * d + (n - 1) * t + 1, t)
        for k, n, t, d in zip(tap, sizes, strides, dilations, strict=True)
    ]


def same_pads(
    space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    *,
    upper: bool,
) -> list[tuple[int, int]]:
    """The padding of SAME_UPPER and SAME_LOWER: as many outputs as `ceil(size / stride)`.

    Args:
        space: Sizes of the input.
        kernel: Sizes of the kernel.
        strides: Of each axis.
        dilations: Of each axis.
        upper: Whether an odd zero goes behind.

    Returns:
        Zeros before and behind each axis.
    """
    totals = [
        max((math.ceil(s / t) - 1) * t + (k - 1) * d + 1 - s, 0)
        for s, k, t, d in zip(space, kernel, strides, dilations, strict=True)
    ]
    return [split_padding(total, upper=upper) for total in totals]


def split_padding(total: int, *, upper: bool) -> tuple[int, int]:
    """Before and behind; the odd one behind if `upper`."""
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)

"""Triton kernels of the forward pass: partial moments, their merge, and the output.

Deviations are taken from the first value of the channel, so that a mean far from zero costs no
digits; within a tile again from the mean of the tile, and tiles are merged (Chan, Golub &
LeVeque 1983). `E[x**2] - E[x]**2` is never computed. Memory is read twice and written once.
Tested through Triton's interpreter and compiled for sm_80 and sm_90; speed on a GPU is
unmeasured.
"""

# A parameter is a pointer, a block, a number or a tuple of those, of the compiler's own types:
# ruff: noqa: ANN001, ANN201
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnkit.ops.kernels.triton_config import MERGE, Launch, Shape, fixed_by
from bnkit.ops.kernels.triton_tiles import activate, affine, locate, merged, positions
from bnkit.ops.registry import Affine


@triton.jit
def moments_kernel(x, partial, shape, work, fixed: tl.constexpr):
    """Count, mean and m2 of a part of a block of channels, about the channel's first value.

    `partial` is `(parts, 3, c)` in the dtype of the statistics.
    """
    _, c, s = shape
    tiles, each = work
    wide = partial.dtype.element_ty
    width: tl.constexpr = fixed.channels
    channel = tl.program_id(0) * width + tl.arange(0, width)
    first = tl.program_id(1) * each
    origin = tl.load(x + channel.to(tl.int64) * s, channel < c, 0.0).to(wide)
    count = tl.zeros([width], wide)
    mean = tl.zeros([width], wide)
    m2 = tl.zeros([width], wide)
    for t in range(first, tl.minimum(first + each, tiles)):
        offset, inside = locate(t, channel, shape, fixed)
        d = tl.load(x + offset, inside, 0.0).to(wide) - origin[None, :]
        d = tl.where(inside, d, 0.0)
        k = positions(t, shape, fixed)
        tile_mean = tl.sum(d, 0) / k
        d = tl.where(inside, d - tile_mean[None, :], 0.0)
        count, mean, m2 = merged(count, mean, m2, k, tile_mean, tl.sum(d * d, 0))
    at = partial + (tl.program_id(1) * 3) * c + channel
    tl.store(at, count, channel < c)
    tl.store(at + c, mean, channel < c)
    tl.store(at + 2 * c, m2, channel < c)


@triton.jit
def merge_kernel(x, partial, moments, shape, fixed: tl.constexpr):
    """The parts as one: mean and m2 of every channel, into `moments`, `(2, c)`."""
    parts, c, s = shape
    wide = partial.dtype.element_ty
    width: tl.constexpr = fixed.channels
    channel = tl.program_id(0) * width + tl.arange(0, width)
    known = channel < c
    count = tl.zeros([width], wide)
    mean = tl.zeros([width], wide)
    m2 = tl.zeros([width], wide)
    for start in range(0, parts, fixed.planes):
        part = start + tl.arange(0, fixed.planes)
        inside = (part < parts)[:, None] & known[None, :]
        at = partial + (part * 3)[:, None] * c + channel[None, :]
        counts = tl.load(at, inside, 0.0)
        means = tl.load(at + c, inside, 0.0)
        k = tl.maximum(tl.sum(counts, 0), 1.0)
        center = tl.sum(counts * means, 0) / k
        between = tl.where(inside, means - center[None, :], 0.0)
        within = tl.load(at + 2 * c, inside, 0.0)
        squares = tl.sum(within + counts * between * between, 0)
        count, mean, m2 = merged(count, mean, m2, k, center, squares)
    origin = tl.load(x + channel.to(tl.int64) * s, known, 0.0).to(wide)
    tl.store(moments + channel, origin + mean, known)
    tl.store(moments + c + channel, m2, known)


@triton.jit
def normalize_kernel(arrays, parameters, statistics, work, fixed: tl.constexpr):
    """`act((x - mean) * weight * invstd + bias + residual)`."""
    x, residual, y = arrays
    tiles, each, shape = work
    width: tl.constexpr = fixed.channels
    channel = tl.program_id(0) * width + tl.arange(0, width)
    mean, _, scale, shift = affine(parameters, statistics, channel, shape, fixed)
    first = tl.program_id(1) * each
    for t in range(first, tl.minimum(first + each, tiles)):
        offset, inside = locate(t, channel, shape, fixed)
        z = tl.load(x + offset, inside, 0.0).to(mean.dtype) - mean[None, :]
        z = z * scale[None, :] + shift[None, :]
        if residual is not None:
            z += tl.load(residual + offset, inside, 0.0).to(mean.dtype)
        z = activate(z, fixed)
        tl.store(y + offset, z.to(y.dtype.element_ty), inside)


def partial_moments(x: Tensor, shape: Shape, launch: Launch, dtype: torch.dtype) -> Tensor:
    """Count, mean and m2 of every part.

    Args:
        x: Values that lie in memory as `shape` says.
        shape: `(n, c, s)`.
        launch: The knobs.
        dtype: Of the statistics.

    Returns:
        Shape `(parts, 3, c)`; the mean is that of the deviations from the channel's first value.
    """
    partial = torch.empty((launch.grid[1], 3, shape[1]), dtype=dtype, device=x.device)
    work = launch.tiles, launch.each
    moments_kernel[launch.grid](x, partial, shape, work, launch.tile, num_warps=launch.num_warps)
    return partial


def merge_moments(x: Tensor, shape: Shape, partial: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and m2 of every channel from those of the parts.

    Args:
        x: The values that the parts are of.
        shape: `(n, c, s)`.
        partial: From `partial_moments`.

    Returns:
        Mean and m2, shape `(c,)`.
    """
    _, c, s = shape
    found = partial.new_empty((2, c))
    grid = (triton.cdiv(c, MERGE.channels),)
    merge_kernel[grid](x, partial, found, (partial.shape[0], c, s), MERGE, num_warps=4)
    mean, m2 = found.unbind(0)
    return mean, m2


def normalize(
    x: Tensor, statistics: tuple[Tensor, Tensor, int], given: Affine, shape: Shape, launch: Launch
) -> Tensor:
    """The output.

    Args:
        x: Values that lie in memory as `shape` says.
        statistics: Mean, m2 and the count that gives `var = m2 / count`.
        given: The affine form, the residual and the activation.
        shape: `(n, c, s)`.
        launch: The knobs.

    Returns:
        The output, which lies in memory as x does.
    """
    y = torch.empty_like(x)
    normalize_kernel[launch.grid](
        (x, given.residual, y),
        (given.weight, given.bias),
        statistics,
        (launch.tiles, launch.each, shape),
        fixed_by(launch.tile, given),
        num_warps=launch.num_warps,
    )
    return y

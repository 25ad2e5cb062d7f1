"""Triton kernels of the backward pass: sums over the batch, then the gradient.

No mask of the activation is kept: what stood before it is computed again from x. Memory is read
four times and written once (a residual adds two and one). Tested through Triton's interpreter
and compiled for sm_80 and sm_90; speed on a GPU is unmeasured.
"""

# A parameter is a pointer, a block, a number or a tuple of those, of the compiler's own types:
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnkit.ops.kernels.triton_config import MERGE, Launch, Shape, fixed_by
from bnkit.ops.kernels.triton_tiles import affine, locate, through
from bnkit.ops.registry import Affine


@triton.jit
def _tile(arrays, offset, inside, per_channel, fixed: tl.constexpr):
    """Gradient before the activation, and deviations of x from the mean."""
    grad_y, x, residual = arrays
    mean, _, scale, shift = per_channel
    g = tl.load(grad_y + offset, inside, 0.0).to(mean.dtype)
    d = tl.load(x + offset, inside, 0.0).to(mean.dtype) - mean[None, :]
    if fixed.act != "none":
        z = d * scale[None, :] + shift[None, :]
        if residual is not None:
            z += tl.load(residual + offset, inside, 0.0).to(mean.dtype)
        g = through(g, z, fixed)
    return g, d


@triton.jit
def sums_kernel(arrays, partial, constants, work, fixed: tl.constexpr):
    """Sums of g and of `g * (x - mean)` of a part, into `partial`, `(parts, 2, c)`."""
    tiles, each, shape = work
    width: tl.constexpr = fixed.channels
    channel = tl.program_id(0) * width + tl.arange(0, width)
    known = channel < shape[1]
    per_channel = affine(constants[0], constants[1], channel, shape, fixed)
    wide = partial.dtype.element_ty
    # one sum for every position of the tile: nothing to wait for between tiles
    positions: tl.constexpr = fixed.planes * fixed.span
    by_bias = tl.zeros([positions, width], wide)
    by_weight = tl.zeros([positions, width], wide)
    first = tl.program_id(1) * each
    for t in range(first, tl.minimum(first + each, tiles)):
        offset, inside = locate(t, channel, shape, fixed)
        g, d = _tile(arrays, offset, inside, per_channel, fixed)
        g = tl.where(inside, g, 0.0)
        by_bias += g
        by_weight += tl.where(inside, g * d, 0.0)
    at = partial + (tl.program_id(1) * 2) * shape[1] + channel
    tl.store(at, tl.sum(by_bias, 0), known)
    tl.store(at + shape[1], tl.sum(by_weight, 0), known)


@triton.jit
def finish_kernel(partial, sums, statistics, shape, fixed: tl.constexpr):
    """Gradients by weight and bias from the sums of the parts, into `sums`, `(2, c)`."""
    parts, c = shape
    width: tl.constexpr = fixed.channels
    channel = tl.program_id(0) * width + tl.arange(0, width)
    known = channel < c
    by_bias = tl.zeros([width], partial.dtype.element_ty)
    by_weight = tl.zeros([width], partial.dtype.element_ty)
    for start in range(0, parts, fixed.planes):
        part = start + tl.arange(0, fixed.planes)
        inside = (part < parts)[:, None] & known[None, :]
        at = partial + (part * 2)[:, None] * c + channel[None, :]
        by_bias += tl.sum(tl.load(at, inside, 0.0), 0)
        by_weight += tl.sum(tl.load(at + c, inside, 0.0), 0)
    _, invstd, _, _ = affine((None, None), statistics, channel, (1, c, 1), fixed)
    tl.store(sums + channel, by_weight * invstd, known)
    tl.store(sums + c + channel, by_bias, known)


@triton.jit
def gradient_kernel(arrays, outputs, constants, work, fixed: tl.constexpr):
    """`scale * (g - mean of g - xhat * mean of g xhat)`, and g for the residual."""
    tiles, each, shape = work
    grad_x, grad_residual = outputs
    count = constants[1][2]
    width: tl.constexpr = fixed.channels
    channel = tl.program_id(0) * width + tl.arange(0, width)
    known = channel < shape[1]
    per_channel = affine(constants[0], constants[1], channel, shape, fixed)
    sums = constants[2] + channel
    slope = tl.load(sums, known, 0.0) * per_channel[1] / count
    level = tl.load(sums + shape[1], known, 0.0) / count
    first = tl.program_id(1) * each
    for t in range(first, tl.minimum(first + each, tiles)):
        offset, inside = locate(t, channel, shape, fixed)
        g, d = _tile(arrays, offset, inside, per_channel, fixed)
        if grad_residual is not None:
            tl.store(grad_residual + offset, g.to(grad_residual.dtype.element_ty), inside)
        g = (g - level[None, :] - d * slope[None, :]) * per_channel[2][None, :]
        tl.store(grad_x + offset, g.to(grad_x.dtype.element_ty), inside)


def parameter_gradients(
    arrays: tuple[Tensor, Tensor, Tensor | None],
    statistics: tuple[Tensor, Tensor, int],
    given: Affine,
    shape: Shape,
    launch: Launch,
) -> Tensor:
    """Gradients by weight and bias.

    Args:
        arrays: Gradient by the output, x, and the residual.
        statistics: Mean, m2 and count.
        given: The affine form and the activation.
        shape: `(n, c, s)`.
        launch: The knobs.

    Returns:
        Shape `(2, c)`: by weight, by bias.
    """
    mean, c = statistics[0], shape[1]
    partial = mean.new_empty((launch.grid[1], 2, c))
    sums_kernel[launch.grid](
        arrays,
        partial,
        ((given.weight, given.bias), statistics),
        (launch.tiles, launch.each, shape),
        fixed_by(launch.tile, given),
        num_warps=launch.num_warps,
    )
    sums = mean.new_empty((2, c))
    grid = (triton.cdiv(c, MERGE.channels),)
    parts = partial.shape[0], c
    finish_kernel[grid](partial, sums, statistics, parts, fixed_by(MERGE, given), num_warps=4)
    return sums


def input_gradients(
    arrays: tuple[Tensor, Tensor, Tensor | None],
    constants: tuple[tuple[Tensor, Tensor, int], Tensor],
    given: Affine,
    shape: Shape,
    launch: Launch,
) -> tuple[Tensor, Tensor | None]:
    """Gradients by x and by the residual.

    Args:
        arrays: Gradient by the output, x, and the residual.
        constants: Mean, m2 and count; the result of `parameter_gradients`.
        given: The affine form and the activation.
        shape: `(n, c, s)`.
        launch: The knobs.

    Returns:
        The gradient by x, and that by the residual where there is one.
    """
    statistics, sums = constants
    outputs = (
        torch.empty_like(arrays[1]),
        None if given.residual is None else torch.empty_like(given.residual),
    )
    gradient_kernel[launch.grid](
        arrays,
        outputs,
        ((given.weight, given.bias), statistics, sums),
        (launch.tiles, launch.each, shape),
        fixed_by(launch.tile, given),
        num_warps=launch.num_warps,
    )
    return outputs

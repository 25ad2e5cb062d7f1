"""Loops over `(n, c, s)` with contiguous planes of s values: NCHW, NCL.

A block of neighbouring channels is worked through at a time: its statistics, then its output.
The second reading then comes from the cache, and memory is read once and written once.

Deviations from a center are summed over a few short planes, or a long one, once themselves and once
squared, and merged in double precision (Chan, Golub & LeVeque 1983; theory
page, equation 9). The center is near the mean so far, and near that of the first plane at the
start. One far from its planes costs no digits of the result: the distance is then part of the
variance itself.
"""

import math
from functools import cache
from typing import Any

import numpy as np

from bnkit.ops.kernels.activations import activate, through
from bnkit.ops.kernels.centers import center_near
from bnkit.ops.kernels.compiled import compiled, specialized
from bnkit.ops.kernels.vector import (
    fma,
    keep,
    lanes,
    load,
    load_part,
    number,
    spread,
    store,
    store_part,
    total,
    widen,
)

# Short planes are summed together up to so many values, of at most so many planes: more would
# fight for the same lines of the first cache.
_TOGETHER = 1024
_PLANES = 8
# A long plane is read from its beginning to its end, which the prefetchers follow best; after so
# many values its sums enter double precision.
_PIECE = 2048

# what these names mean is set anew for each variant of a loop: `specialized`
residual: Any = None
forward: Any = None
carry: Any = None
sums: Any = None


@compiled
def _deviations(x: Any, first: int, planes: Any, s: int, center: Any) -> Any:
    """Sums of x - center and of its square over planes: (how many, stride) from a first value.

    Four terms at most are added in the precision of x before they enter the first sum: the mean
    is then as good as float32 can store it. The second has no cancellation to fear.

    Args:
        x: Flat values.
        first: Index of the first value.
        planes: How many, and how far apart.
        s: Values of each.
        center: In the precision of the computation.

    Returns:
        Both sums, float64.
    """
    size = lanes(x)
    c, zero = spread(center), spread(number(x, 0))
    a, q = widen(zero), widen(zero)
    q0, q1, q2, q3 = zero, zero, zero, zero
    for i in range(planes[0]):
        k = first + i * planes[1]
        last = k + s
        while k < last:
            end = min(k + _PIECE, last)
            while k + 4 * size <= end:
                d0, d1 = load(x, k) - c, load(x, k + size) - c
                d2, d3 = load(x, k + 2 * size) - c, load(x, k + 3 * size) - c
                a += widen((d0 + d1) + (d2 + d3))
                q0, q1, q2, q3 = fma(d0, d0, q0), fma(d1, d1, q1), fma(d2, d2, q2), fma(d3, d3, q3)
                k += 4 * size
            few = zero
            while k + size <= end:
                d0 = load(x, k) - c
                few += d0
                q0, q1, q2, q3 = q1, q2, q3, fma(d0, d0, q0)
                k += size
            if k < end:
                d1 = keep(load_part(x, k, end - k) - c, end - k)
                few += d1
                q1 = fma(d1, d1, q1)
                k = end
            a += widen(few)
            if s > _PIECE:
                q += widen((q0 + q1) + (q2 + q3))
                q0, q1, q2, q3 = zero, zero, zero, zero
    return total(a), total(q) + total((q0 + q1) + (q2 + q3))


@compiled
def planes_moments(x: Any, shape: Any, channels: Any, mean: Any, m2: Any, centers: Any) -> None:
    """Mean and m2 (float64) of a range of channels.

    Args:
        x: Flat values.
        shape: (n, c, s).
        channels: First and past the last channel.
        mean: Written at these channels.
        m2: Written at these channels.
        centers: Room for a value per channel, in the precision of the computation.
    """
    n, c, s = shape
    group = max(1, min(_PLANES, _TOGETHER // s))
    piece = min(s, _PIECE)
    for ch in range(channels[0], channels[1]):
        value = total(load_part(x, ch * s, 1))
        a, q = _deviations(x, ch * s, (1, 0), piece, number(x, value))
        centers[ch] = center_near(x, value + a / piece, (q - a * (a / piece)) / piece)
        mean[ch] = 0.0
        m2[ch] = 0.0
    count = 0.0
    for i in range(0, n, group):
        planes = min(group, n - i)
        values = planes * s
        inverse, share, every = 1.0 / values, values / (count + values), 1 / (count + values)
        for ch in range(channels[0], channels[1]):
            center = centers[ch]
            a, q = _deviations(x, (i * c + ch) * s, (planes, c * s), s, center)
            left = a * inverse
            delta = center + left - mean[ch]
            mean[ch] += delta * share
            m2[ch] += (q - a * left) + delta * delta * (count * share)
            centers[ch] = center_near(x, mean[ch], m2[ch] * every)
        count += values


def _planes_forward(
    x: Any, added: Any, y: Any, shape: Any, channels: Any, affine: Any, slope: Any
) -> None:
    n, c, s = shape
    size = lanes(x)
    steep = spread(slope)
    for i in range(n):
        for ch in range(channels[0], channels[1]):
            k = (i * c + ch) * s
            end = k + s
            m, w, b = spread(affine[0, ch]), spread(affine[1, ch]), spread(affine[2, ch])
            while k + size <= end:
                z = fma(load(x, k) - m, w, b)
                if residual:
                    z += load(added, k)
                store(y, k, forward(x, z, steep))
                k += size
            if k < end:
                z = fma(load_part(x, k, end - k) - m, w, b)
                if residual:
                    z += load_part(added, k, end - k)
                store_part(y, k, forward(x, z, steep), end - k)


@cache
def planes_forward(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The loop `y = act((x - mean) * scale + shift + residual)` for a range of channels.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something is added before the activation.

    Returns:
        `run(x, added, y, shape, channels, affine, slope)` on flat arrays; the rows of `affine`
        are mean, scale and shift, in the precision of the computation.
    """
    forward = activate(act)
    return specialized(_planes_forward, act=act, residual=residual, forward=forward)


@compiled
def scale_and_shift(channels: Any, values: int, eps: float, given: Any, affine: Any) -> None:
    """Rows mean, scale and shift of `affine` from `given`: (weight, bias, mean, m2)."""
    weight, bias, mean, m2 = given
    inverse = 1.0 / values
    for ch in range(channels[0], channels[1]):
        affine[0, ch] = mean[ch]
        numerator = np.float64(weight[ch]) if weight.size else 1.0
        affine[1, ch] = numerator / math.sqrt(m2[ch] * inverse + eps)
        affine[2, ch] = bias[ch] if bias.size else 0.0


def _run_sums(
    grad: Any, x: Any, added: Any, first: int, planes: Any, s: int, line: Any, slope: Any
) -> Any:
    size = lanes(x)
    m, w, b = spread(line[0]), spread(line[1]), spread(line[2])
    steep, zero = spread(slope), spread(number(x, 0))
    p, q = widen(zero), widen(zero)
    p0, p1, q0, q1 = zero, zero, zero, zero
    for i in range(planes[0]):
        k = first + i * planes[1]
        last = k + s
        while k < last:
            end = min(k + _PIECE, last)
            while k + 2 * size <= end:
                d0, d1 = load(x, k) - m, load(x, k + size) - m
                z0, z1 = fma(d0, w, b), fma(d1, w, b)
                if residual:
                    z0 += load(added, k)
                    z1 += load(added, k + size)
                g0 = carry(x, load(grad, k), z0, steep)
                g1 = carry(x, load(grad, k + size), z1, steep)
                p0, p1 = fma(g0, d0, p0), fma(g1, d1, p1)
                q0, q1 = q0 + g0, q1 + g1
                k += 2 * size
            while k < end:
                left = end - k
                d0 = keep(load_part(x, k, left) - m, left)
                z0 = fma(d0, w, b)
                if residual:
                    z0 += load_part(added, k, left)
                g0 = keep(carry(x, load_part(grad, k, left), z0, steep), left)
                p0, q0 = fma(g0, d0, p0), q0 + g0
                k += size
            if s > _PIECE:
                p, q = p + widen(p0 + p1), q + widen(q0 + q1)
                p0, p1, q0, q1 = zero, zero, zero, zero
    return total(p) + total(p0 + p1), total(q) + total(q0 + q1)


@cache
def _sums(act: str, residual: bool) -> Any:  # noqa: FBT001
    carry = through(act)
    return specialized(_run_sums, act=act, residual=residual, carry=carry)


def _planes_sums(
    grad: Any, x: Any, added: Any, shape: Any, channels: Any, affine: Any, found: Any, slope: Any
) -> None:
    n, c, s = shape
    group = max(1, min(_PLANES, _TOGETHER // s))
    for ch in range(channels[0], channels[1]):
        found[0, ch] = 0.0
        found[1, ch] = 0.0
    for i in range(0, n, group):
        planes = (min(group, n - i), c * s)
        for ch in range(channels[0], channels[1]):
            line = affine[0, ch], affine[1, ch], affine[2, ch]
            p, q = sums(grad, x, added, (i * c + ch) * s, planes, s, line, slope)
            found[0, ch] += p
            found[1, ch] += q


@cache
def planes_sums(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The sums of the backward pass for a range of channels.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, shape, channels, affine, found, slope)`; the rows of `found`
        (float64) are written with the sums of g * (x - mean) and of g, the gradient before the
        activation.
    """
    sums = _sums(act, residual)
    return specialized(_planes_sums, act=act, residual=residual, sums=sums)


def _planes_backward(
    grad: Any, x: Any, added: Any, outputs: Any, shape: Any, channels: Any, affine: Any, slope: Any
) -> None:
    grad_x, grad_added = outputs
    n, c, s = shape
    size = lanes(x)
    steep = spread(slope)
    for i in range(n):
        for ch in range(channels[0], channels[1]):
            k = (i * c + ch) * s
            end = k + s
            m, w, b = spread(affine[0, ch]), spread(affine[1, ch]), spread(affine[2, ch])
            along, level = spread(affine[3, ch]), spread(affine[4, ch])
            while k + size <= end:
                d = load(x, k) - m
                z = fma(d, w, b)
                if residual:
                    z += load(added, k)
                g = carry(x, load(grad, k), z, steep)
                if residual:
                    store(grad_added, k, g)
                store(grad_x, k, fma(g, w, fma(d, along, level)))
                k += size
            if k < end:
                left = end - k
                d = load_part(x, k, left) - m
                z = fma(d, w, b)
                if residual:
                    z += load_part(added, k, left)
                g = carry(x, load_part(grad, k, left), z, steep)
                if residual:
                    store_part(grad_added, k, g, left)
                store_part(grad_x, k, fma(g, w, fma(d, along, level)), left)


@cache
def planes_backward(act: str, residual: bool) -> Any:  # noqa: FBT001
    """Gradients by x and by the residual for a range of channels.

    `z = (x - mean) * scale + shift + residual` is computed again, so that nothing but x (and the
    residual) is kept. With g the gradient before the activation, equation 6:
    `grad_x = scale * (g - sum(g) / N - xhat * sum(g * xhat) / N)`.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, (grad_x, grad_added), shape, channels, affine, slope)`; rows 3 and 4
        of `affine` are the factor of x - mean and the constant of grad_x.
    """
    carry = through(act)
    return specialized(_planes_backward, act=act, residual=residual, carry=carry)

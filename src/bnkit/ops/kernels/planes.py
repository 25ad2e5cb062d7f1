"""Loops over `(n, c, s)` with contiguous planes of s values: NCHW, NCL.

A block of neighbouring channels is worked through at a time: its statistics, then its output.
The second reading then comes from the cache, and memory is read once and written once. Within a
plane, deviations from a center are summed in the precision of x, once themselves and once
squared: the first plane's mean, then that of all planes before. Planes are merged in double
precision (Chan, Golub & LeVeque 1983; theory page, equation 9). A center far from its plane costs
no digits of the result: the distance is then part of the variance itself.

Slices, not offsets: only indices that start at 0 let the compiler drop the wrap-around of
negative ones, without which nothing vectorises.
"""

import math
from functools import cache
from typing import Any

import numpy as np

from bnkit.ops.kernels.activations import activate, through
from bnkit.ops.kernels.compiled import compiled, compiled_sums, specialized

# what these names mean is set anew for each variant of a loop: `specialized`
residual: Any = None
forward: Any = None
carry: Any = None
sums_of_plane: Any = None


@compiled_sums
def _center(xs: Any) -> Any:
    """A value near the mean of a plane."""
    first = xs[0]
    a = xs.dtype.type(0)
    for k in range(xs.shape[0]):
        a += xs[k] - first
    return xs.dtype.type(np.float64(first) + np.float64(a) / xs.shape[0])


@compiled_sums
def plane_moments(x: Any, shape: Any, channels: Any, mean: Any, m2: Any) -> None:
    """Mean and m2 (float64) of a range of channels.

    Args:
        x: Flat values.
        shape: (n, c, s).
        channels: First and past the last channel.
        mean: Written at these channels.
        m2: Written at these channels.
    """
    n, c, s = shape
    zero = x.dtype.type(0)
    for ch in range(channels[0], channels[1]):
        mean[ch] = 0.0
        m2[ch] = 0.0
    count = 0.0
    for i in range(n):
        total = count + s
        for ch in range(channels[0], channels[1]):
            base = (i * c + ch) * s
            xs = x[base : base + s]
            center = x.dtype.type(mean[ch]) if i else _center(xs)
            a = zero
            q = zero
            for k in range(s):
                d = xs[k] - center
                a += d
                q += d * d
            left = np.float64(a) / s
            delta = np.float64(center) + left - mean[ch]
            mean[ch] += delta * (s / total)
            m2[ch] += (q - s * left * left) + delta * delta * (count * s / total)
        count = total


def _planes_forward(
    x: Any, added: Any, y: Any, shape: Any, channels: Any, affine: Any, slope: Any
) -> None:
    n, c, s = shape
    for i in range(n):
        for ch in range(channels[0], channels[1]):
            base = (i * c + ch) * s
            xs, ys, rs = x[base : base + s], y[base : base + s], added[base : base + s]
            m, w, b = affine[0, ch], affine[1, ch], affine[2, ch]
            for k in range(s):
                z = (xs[k] - m) * w + b
                if residual:
                    z += rs[k]
                ys[k] = forward(z, slope)


@cache
def planes_forward(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The loop `y = act((x - mean) * scale + shift + residual)` for a range of channels.

    Args:
        act: "none", "relu", "leaky_relu" or "silu".
        residual: Whether something is added before the activation.

    Returns:
        `run(x, added, y, shape, channels, affine, slope)` on flat arrays; the rows of `affine`
        are mean, scale and shift, in the dtype of x.
    """
    forward = activate(act)
    return specialized(_planes_forward, act=act, residual=residual, forward=forward)


@compiled
def finish_statistics(
    channels: Any, count: int, parameters: Any, eps: float, statistics: Any, affine: Any
) -> None:
    """Rows mean, scale and shift of `affine` from rows mean and m2 of `statistics`."""
    for ch in range(channels[0], channels[1]):
        affine[0, ch] = statistics[0, ch]
        affine[1, ch] = parameters[0, ch] / math.sqrt(statistics[1, ch] / count + eps)
        affine[2, ch] = parameters[1, ch]


def _planes_train(
    x: Any,
    added: Any,
    y: Any,
    shape: Any,
    channels: Any,
    block: int,
    parameters: Any,
    eps: float,
    statistics: Any,
    affine: Any,
    slope: Any,
) -> None:
    for first in range(channels[0], channels[1], block):
        part = (first, min(first + block, channels[1]))
        plane_moments(x, shape, part, statistics[0], statistics[1])
        finish_statistics(part, shape[0] * shape[2], parameters, eps, statistics, affine)
        forward(x, added, y, shape, part, affine, slope)


@cache
def planes_train(act: str, residual: bool) -> Any:  # noqa: FBT001
    """Training forward for a range of channels.

    Args:
        act: Name of the activation.
        residual: Whether something is added before the activation.

    Returns:
        `run(x, added, y, shape, channels, block, parameters, eps, statistics, affine, slope)`;
        `block` channels are worked through together, `statistics` (float64: mean, m2) and
        `affine` are written.
    """
    forward = planes_forward(act, residual)
    return specialized(_planes_train, act=act, residual=residual, forward=forward)


def _run_sums_of_plane(gs: Any, xs: Any, rs: Any, affine: Any, ch: int, slope: Any) -> Any:
    m, w, b = affine[0, ch], affine[1, ch], affine[2, ch]
    p = xs.dtype.type(0)
    q = xs.dtype.type(0)
    for k in range(xs.shape[0]):
        d = xs[k] - m
        z = d * w + b
        if residual:
            z += rs[k]
        g = carry(gs[k], z, slope)
        p += g * d
        q += g
    return p, q


@cache
def _sums_of_plane(act: str, residual: bool) -> Any:  # noqa: FBT001
    carry = through(act)
    return specialized(_run_sums_of_plane, sums=True, act=act, residual=residual, carry=carry)


def _planes_backward(
    grad: Any,
    x: Any,
    added: Any,
    grad_x: Any,
    grad_added: Any,
    shape: Any,
    channels: Any,
    block: int,
    affine: Any,
    invstd: Any,
    sums: Any,
    slope: Any,
) -> None:
    n, c, s = shape
    for first in range(channels[0], channels[1], block):
        last = min(first + block, channels[1])
        for ch in range(first, last):
            sums[0, ch] = 0.0
            sums[1, ch] = 0.0
        for i in range(n):
            for ch in range(first, last):
                base = (i * c + ch) * s
                xs, gs, rs = x[base : base + s], grad[base : base + s], added[base : base + s]
                p, q = sums_of_plane(gs, xs, rs, affine, ch, slope)
                sums[0, ch] += p * invstd[ch]
                sums[1, ch] += q
        for i in range(n):
            for ch in range(first, last):
                base = (i * c + ch) * s
                xs, gs, rs = x[base : base + s], grad[base : base + s], added[base : base + s]
                out, through_add = grad_x[base : base + s], grad_added[base : base + s]
                m, w, b = affine[0, ch], affine[1, ch], affine[2, ch]
                along = x.dtype.type(-w * invstd[ch] * sums[0, ch] / (n * s))
                level = x.dtype.type(-w * sums[1, ch] / (n * s))
                for k in range(s):
                    d = xs[k] - m
                    z = d * w + b
                    if residual:
                        z += rs[k]
                    g = carry(gs[k], z, slope)
                    if residual:
                        through_add[k] = g
                    out[k] = g * w + d * along + level


@cache
def planes_backward(act: str, residual: bool) -> Any:  # noqa: FBT001  one loop nest
    """Gradients of the training form for a range of channels.

    `z = (x - mean) * scale + shift + residual` is computed again, so that nothing but x (and the
    residual) is kept. With g the gradient before the activation, equation 6:
    `grad_x = scale * (g - sum(g) / N - xhat * sum(g * xhat) / N)`.

    Args:
        act: Name of the activation.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, grad_x, grad_added, shape, channels, block, affine, invstd, sums,
        slope)`; `sums` (float64: of g * xhat, of g), `grad_x` and `grad_added` are written.
    """
    carry = through(act)
    sums_of_plane = _sums_of_plane(act, residual)
    return specialized(
        _planes_backward, act=act, residual=residual, carry=carry, sums_of_plane=sums_of_plane
    )

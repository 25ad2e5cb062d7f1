"""Loops over `(n, c, s)` with contiguous planes, of which only some positions count.

`hulls` has the first and past the last position of each sample that counts: beyond them nothing is
read and 0 is written, so that padding at the end costs nothing. Where there are holes within,
`there` has a number for each position, shape `(n, s)`, in the precision of the computation: 1 for
what counts, 0 for padding. It is read beside every plane and stays in the cache. What stands at
padding is selected away before it enters a sum, so that NaN does no harm.

Sums, centers and blocks are those of `planes`; pieces count what they keep.
"""

from functools import cache
from typing import Any

import numpy as np

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
    where_less,
    widen,
)

# what these names mean is set anew for each variant of a loop: `specialized`
holes: Any = None
deviations: Any = None
sums: Any = None

# as in `planes`
_TOGETHER = 1024
_PLANES = 8
_PIECE = 2048


@compiled
def _together(s: int) -> int:
    """How many short planes are summed around one center."""
    return max(1, min(_PLANES, _TOGETHER // s))


@compiled
def find_hulls(mask: Any, s: int, hulls: Any) -> bool:
    """The hulls of a mask, and whether there are holes in one.

    Args:
        mask: One byte for each position; 0 = does not count.
        s: Positions of a sample.
        hulls: Shape (n, 2); written: both 0 for a sample of which nothing counts.

    Returns:
        Whether something within a hull does not count.
    """
    holed = False
    for i in range(hulls.shape[0]):
        begin, end = 0, s
        while end > 0 and mask[i * s + end - 1] == 0:
            end -= 1
        while begin < end and mask[i * s + begin] == 0:
            begin += 1
        missing = 0
        for k in range(begin, end):
            missing += mask[i * s + k] == 0
        holed = holed or missing > 0
        hulls[i, 0] = begin
        hulls[i, 1] = end
    return holed


@compiled
def _within(hulls: Any, i: int, k: int) -> Any:
    """What of the piece of a plane at position k lies in the hull of sample i."""
    begin = max(hulls[i, 0], k)
    return begin, max(begin, min(hulls[i, 1], k + _PIECE))


@compiled
def _count_kept(there: Any, hulls: Any, s: int) -> Any:
    """How many positions count, for each sample and piece of a plane; no `there`: all in hulls."""
    pieces = (s + _PIECE - 1) // _PIECE
    counts = np.zeros((hulls.shape[0], pieces), np.float64)
    size = lanes(there)
    for i in range(hulls.shape[0]):
        for p in range(pieces):
            begin, end = _within(hulls, i, p * _PIECE)
            counts[i, p] = end - begin
            if there.size:
                a = spread(number(there, 0))
                for k in range(begin, end, size):
                    a += load_part(there, i * s + k, end - k)
                counts[i, p] = total(a)
    return counts


def _run_deviations(x: Any, there: Any, samples: Any, place: Any, hulls: Any, center: Any) -> Any:
    # both sums in float64, of one channel: x - center, of which four terms at most are added in the
    # precision of x, and its square. `samples` are the first and past the last, `place` is how
    # many channels, which, values of a plane, and where the piece begins
    channels, ch, s, piece = place
    size = lanes(x)
    c, zero = spread(center), spread(number(x, 0))
    a = widen(zero)
    q0, q1, q2, q3 = zero, zero, zero, zero
    for i in range(samples[0], samples[1]):
        begin, past = _within(hulls, i, piece)
        k, j = (i * channels + ch) * s + begin, i * s + begin
        end = k + past - begin
        while k + 4 * size <= end:
            d0, d1 = load(x, k) - c, load(x, k + size) - c
            d2, d3 = load(x, k + 2 * size) - c, load(x, k + 3 * size) - c
            if holes:
                d0 = where_less(zero, load(there, j), d0, zero)
                d1 = where_less(zero, load(there, j + size), d1, zero)
                d2 = where_less(zero, load(there, j + 2 * size), d2, zero)
                d3 = where_less(zero, load(there, j + 3 * size), d3, zero)
            a += widen((d0 + d1) + (d2 + d3))
            q0, q1, q2, q3 = fma(d0, d0, q0), fma(d1, d1, q1), fma(d2, d2, q2), fma(d3, d3, q3)
            k += 4 * size
            j += 4 * size
        few = zero
        while k < end:
            left = end - k
            d0 = keep(load_part(x, k, left) - c, left)
            if holes:
                d0 = where_less(zero, load_part(there, j, left), d0, zero)
            few += d0
            q0, q1, q2, q3 = q1, q2, q3, fma(d0, d0, q0)
            k += size
            j += size
        a += widen(few)
    return total(a), total((q0 + q1) + (q2 + q3))


@compiled
def _first_kept(counts: Any) -> Any:
    """Sample and piece of the first that counts."""
    for i in range(counts.shape[0]):
        for p in range(counts.shape[1]):
            if counts[i, p] > 0:
                return i, p
    return 0, 0


@compiled
def _clear(y: Any, begin: int, end: int) -> None:
    size, k = lanes(y), begin
    zero = spread(number(y, 0))
    while k + size <= end:
        store(y, k, zero)
        k += size
    if k < end:
        store_part(y, k, zero, end - k)


def _planes_moments(
    x: Any, there: Any, hulls: Any, shape: Any, channels: Any, found: Any, centers: Any
) -> None:
    n, c, s = shape
    mean, m2 = found
    group, counts = _together(s), _count_kept(there, hulls, s)
    i, p = _first_kept(counts)
    begin, kept = _within(hulls, i, p * _PIECE)[0], counts[i, p]
    while holes and there[i * s + begin] == 0:
        begin += 1
    for ch in range(channels[0], channels[1]):
        value = total(load_part(x, (i * c + ch) * s + begin, 1))
        place = (c, ch, s, p * _PIECE)
        a, q = deviations(x, there, (i, i + 1), place, hulls, number(x, value))
        centers[ch] = center_near(x, value + a / kept, (q - a * (a / kept)) / kept)
        mean[ch] = 0.0
        m2[ch] = 0.0
    count = 0.0
    for i in range(0, n, group):
        samples = (i, min(i + group, n))
        for p in range(counts.shape[1]):
            values = counts[samples[0] : samples[1], p].sum()
            if values == 0:
                continue
            inverse, share, every = 1.0 / values, values / (count + values), 1 / (count + values)
            for ch in range(channels[0], channels[1]):
                center, place = centers[ch], (c, ch, s, p * _PIECE)
                a, q = deviations(x, there, samples, place, hulls, center)
                left = a * inverse
                delta = center + left - mean[ch]
                mean[ch] += delta * share
                m2[ch] += (q - a * left) + delta * delta * (count * share)
                centers[ch] = center_near(x, mean[ch], m2[ch] * every)
            count += values


@cache
def masked_planes_moments(*, holes: bool) -> Any:
    """Mean and m2 (float64) of a range of channels, over what counts.

    Args:
        holes: Whether `there` is to be read.

    Returns:
        `run(x, there, hulls, shape, channels, (mean, m2), centers)` on flat arrays; mean and m2
        are written at these channels, `centers` is room for a value per channel.
    """
    deviations = specialized(_run_deviations, holes=holes)
    return specialized(_planes_moments, holes=holes, deviations=deviations)


def _planes_forward(
    x: Any, there: Any, hulls: Any, y: Any, shape: Any, channels: Any, affine: Any
) -> None:
    n, c, s = shape
    size = lanes(x)
    zero = spread(number(x, 0))
    for i in range(n):
        for ch in range(channels[0], channels[1]):
            plane = (i * c + ch) * s
            k, j, end = plane + hulls[i, 0], i * s + hulls[i, 0], plane + hulls[i, 1]
            _clear(y, plane, k)
            _clear(y, end, plane + s)
            m, w, b = spread(affine[0, ch]), spread(affine[1, ch]), spread(affine[2, ch])
            while k + size <= end:
                z = fma(load(x, k) - m, w, b)
                if holes:
                    z = where_less(zero, load(there, j), z, zero)
                store(y, k, z)
                k += size
                j += size
            if k < end:
                left = end - k
                z = fma(load_part(x, k, left) - m, w, b)
                if holes:
                    z = where_less(zero, load_part(there, j, left), z, zero)
                store_part(y, k, z, left)


@cache
def masked_planes_forward(*, holes: bool) -> Any:
    """`y = (x - mean) * scale + shift`, and 0 where nothing counts, for a range of channels.

    Args:
        holes: Whether `there` is to be read.

    Returns:
        `run(x, there, hulls, y, shape, channels, affine)` on flat arrays; the rows of `affine` are
        mean, scale and shift.
    """
    return specialized(_planes_forward, holes=holes)


def _run_sums(
    grad: Any, x: Any, there: Any, samples: Any, place: Any, hulls: Any, center: Any
) -> Any:
    channels, ch, s, piece = place
    size = lanes(x)
    m, zero = spread(center), spread(number(x, 0))
    p0, p1, q0, q1 = zero, zero, zero, zero
    for i in range(samples[0], samples[1]):
        begin, past = _within(hulls, i, piece)
        k, j = (i * channels + ch) * s + begin, i * s + begin
        end = k + past - begin
        while k + 2 * size <= end:
            d0, d1 = load(x, k) - m, load(x, k + size) - m
            g0, g1 = load(grad, k), load(grad, k + size)
            if holes:
                t0, t1 = load(there, j), load(there, j + size)
                d0, d1 = where_less(zero, t0, d0, zero), where_less(zero, t1, d1, zero)
                g0, g1 = where_less(zero, t0, g0, zero), where_less(zero, t1, g1, zero)
            p0, p1 = fma(g0, d0, p0), fma(g1, d1, p1)
            q0, q1 = q0 + g0, q1 + g1
            k += 2 * size
            j += 2 * size
        while k < end:
            left = end - k
            d0, g0 = keep(load_part(x, k, left) - m, left), load_part(grad, k, left)
            if holes:
                t0 = load_part(there, j, left)
                d0, g0 = where_less(zero, t0, d0, zero), where_less(zero, t0, g0, zero)
            p0, q0 = fma(g0, d0, p0), q0 + g0
            k += size
            j += size
    return total(p0 + p1), total(q0 + q1)


def _planes_sums(
    grad: Any, x: Any, there: Any, hulls: Any, shape: Any, channels: Any, affine: Any, found: Any
) -> None:
    n, c, s = shape
    group = _together(s)
    for ch in range(channels[0], channels[1]):
        found[0, ch] = 0.0
        found[1, ch] = 0.0
    for i in range(0, n, group):
        samples = (i, min(i + group, n))
        for k in range(0, s, _PIECE):
            for ch in range(channels[0], channels[1]):
                p, q = sums(grad, x, there, samples, (c, ch, s, k), hulls, affine[0, ch])
                found[0, ch] += p
                found[1, ch] += q


@cache
def masked_planes_sums(*, holes: bool) -> Any:
    """The sums of the backward pass over what counts, for a range of channels.

    Args:
        holes: Whether `there` is to be read.

    Returns:
        `run(grad, x, there, hulls, shape, channels, affine, found)`; the rows of `found` (float64)
        become the sums of grad * (x - mean) and of grad.
    """
    sums = specialized(_run_sums, holes=holes)
    return specialized(_planes_sums, holes=holes, sums=sums)


def _planes_backward(
    grad: Any, x: Any, there: Any, hulls: Any, grad_x: Any, shape: Any, channels: Any, affine: Any
) -> None:
    n, c, s = shape
    size = lanes(x)
    zero = spread(number(x, 0))
    for i in range(n):
        for ch in range(channels[0], channels[1]):
            plane = (i * c + ch) * s
            k, j, end = plane + hulls[i, 0], i * s + hulls[i, 0], plane + hulls[i, 1]
            _clear(grad_x, plane, k)
            _clear(grad_x, end, plane + s)
            m, w = spread(affine[0, ch]), spread(affine[1, ch])
            along, level = spread(affine[3, ch]), spread(affine[4, ch])
            while k + size <= end:
                g = fma(load(grad, k), w, fma(load(x, k) - m, along, level))
                if holes:
                    g = where_less(zero, load(there, j), g, zero)
                store(grad_x, k, g)
                k += size
                j += size
            if k < end:
                left = end - k
                g = fma(load_part(grad, k, left), w, fma(load_part(x, k, left) - m, along, level))
                if holes:
                    g = where_less(zero, load_part(there, j, left), g, zero)
                store_part(grad_x, k, g, left)


@cache
def masked_planes_backward(*, holes: bool) -> Any:
    """Gradient by x, and 0 where nothing counts, for a range of channels.

    Args:
        holes: Whether `there` is to be read.

    Returns:
        `run(grad, x, there, hulls, grad_x, shape, channels, affine)` on flat arrays; rows 0, 1, 3
        and 4 of `affine` are mean, scale, factor of x - mean, and constant.
    """
    return specialized(_planes_backward, holes=holes)

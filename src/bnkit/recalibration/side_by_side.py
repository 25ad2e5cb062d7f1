"""The channels of all layers side by side: one vector instead of hundreds of small ones."""

from collections.abc import Sequence
from functools import reduce
from itertools import groupby, pairwise
from typing import NamedTuple

import array_api_compat.numpy as xp
import numpy as np
import torch

from bnkit.core import Moments, merge
from bnkit.recalibration.observe import Call


class Sides(NamedTuple):
    """Where the channels of each layer are in the vectors.

    Attributes:
        channels: Of each layer.
    """

    channels: tuple[int, ...]

    @property
    def slices(self) -> list[slice]:
        """The part of each layer."""
        ends = np.cumsum((0, *self.channels)).tolist()
        return [slice(a, b) for a, b in pairwise(ends)]

    @property
    def total(self) -> int:
        """Channels of all layers."""
        return sum(self.channels)


class OnHost(NamedTuple):
    """The calls of one batch in float64 on the host.

    Attributes:
        layers: Number of the layer of each call, ascending.
        moments: Of each call.
        whole: Of all layers side by side, count 0 for a layer that was not called; calls of one
            layer are merged.
    """

    layers: list[int]
    moments: list[Moments]
    whole: Moments

    def finite(self) -> bool:
        """Whether all means and variances are."""
        return bool(np.isfinite(self.whole.mean).all() and np.isfinite(self.whole.m2).all())


def on_host(calls: Sequence[Call], sides: Sides) -> OnHost:
    """Bring what the layers reported to the host, in one transfer.

    Args:
        calls: Of one batch, in any order.
        sides: The places of the layers.

    Returns:
        The calls, and all layers side by side.
    """
    calls = sorted(calls, key=lambda call: call.layer)
    layers = [call.layer for call in calls]
    widths = [sides.channels[number] for number in layers]
    means, m2s = (_joined([c.moments[i] for c in calls]) for i in (1, 2))
    counts = [float(c.moments.count) for c in calls]
    ends = np.cumsum((0, *widths))
    cuts = [slice(a, b) for a, b in pairwise(ends)]
    single = [Moments(n, means[c], m2s[c]) for n, c in zip(counts, cuts, strict=True)]
    if layers == list(range(len(sides.channels))):  # the common case: every layer once
        return OnHost(layers, single, Moments(np.repeat(counts, widths), means, m2s))
    whole = nothing(sides, means.dtype)
    for number, group in groupby(zip(layers, single, strict=True), key=lambda item: item[0]):
        merged = reduce(merge, (m for _, m in group))
        for vector, part in zip(whole, merged, strict=True):
            vector[sides.slices[number]] = part
    return OnHost(layers, single, whole)


def nothing(sides: Sides, dtype: np.dtype | type = np.float64) -> Moments:
    """The moments of no values, for all layers.

    Args:
        sides: The places of the layers.
        dtype: Of the mean.

    Returns:
        Zeros.
    """
    n = sides.total
    return Moments(np.zeros(n), np.zeros(n, dtype), np.zeros(n))


def merged(a: Moments, b: Moments) -> Moments:
    """`core.merge` of vectors side by side."""
    return merge(a, b, xp=xp)


def _joined(parts: list[torch.Tensor]) -> np.ndarray:
    if not parts:
        return np.zeros(0)
    device = parts[0].device
    whole = torch.cat([p.detach().reshape(-1).to(device) for p in parts]).cpu()
    return whole.to(torch.complex128 if whole.is_complex() else torch.float64).numpy()

"""Folding gives one channel far larger weights than the others.

## What it does

For export: finds layers where the largest `|weight| / sqrt(running_var + eps)` of a channel is more
than ten times the median. Channels whose weight is 0 do not count.

## Why is this bad?

Folding multiplies the weights of the layer before by exactly these factors. With one scale for the
whole tensor, an 8-bit quantization that has room for the largest channel leaves the others less
than 13 of 127 steps.

## Known problems

Nothing is lost in floating point, nor with a scale for each channel.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(4).eval()
    >>> _ = layer.running_var.copy_(torch.tensor([1.0, 1.2, 0.9, 1e-3]))
    >>> [f.code for f in bnkit.diagnose(layer, purpose="export").findings]
    ['BN707']

## Use instead

Quantization by channel, or equalization across layers before it.

## Fix safety

Manual.

## References

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction".
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

LARGEST = 10.0
_DEFAULT_EPS = 1e-5


@rule("BN707", "fold-range", purposes=("export",))
def check(evidence: Evidence) -> Iterator[Found]:
    """One channel above the rest."""
    ratios = {r.name: _range(r) for r in evidence.with_statistics}
    off = {n: ratio for n, ratio in ratios.items() if ratio > LARGEST}
    if off:
        yield Found(
            layers=tuple(off),
            message=f"folding multiplies one channel by {max(off.values()):.3g} times the median "
            "factor: a single scale for 8 bits leaves the others few steps.",
            numbers={"largest_over_median": max(off.values()), "threshold": LARGEST},
            fix=manual("quantize by channel, or equalize the layers first"),
        )


def _range(record: BatchNormRecord) -> float:
    var = record.running_var
    if var is None or not record.finite or (var < 0).any():
        return 0.0
    eps = _DEFAULT_EPS if record.eps is None else record.eps
    weight = np.ones_like(var) if record.weight is None else np.abs(record.weight)
    if weight.shape != var.shape or not np.isfinite(weight).all():
        return 0.0
    factors = weight / np.sqrt(var + eps) if eps or var.all() else np.zeros(0)
    factors = factors[factors > 0]
    return float(np.max(factors) / np.median(factors)) if factors.size else 0.0

"""A channel that eval mode multiplies by more than a thousand.

## What it does

Finds channels with `|weight| / sqrt(running_var + eps)` above 1e3.

## Why is this bad?

The noise of a nearly constant channel becomes the signal; in 16 bits it overflows.

## Known problems

Channels of tiny variance that the next layer ignores.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(3).eval()
    >>> layer.running_mean += 0.1
    >>> with torch.no_grad():
    ...     layer.weight[0] = 5e3
    >>> bnkit.diagnose(layer).findings[0].code
    'BN408'

## Use instead

A larger eps, or less of a learning rate.

## Fix safety

Manual.

## References

pytorch/pytorch issue 5410.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN408", "exploding-scale", purposes=("infer", "finetune", "export"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Scales beyond 1e3."""
    scales: dict[str, float] = {}
    for r in evidence.with_statistics:
        var = np.asarray(r.running_var)
        if r.weight is not None and r.eps is not None and r.finite and (var + r.eps > 0).all():
            scales[r.name] = float(np.max(np.abs(r.weight) / np.sqrt(var + r.eps)))
    large = {n: s for n, s in scales.items() if s > 1e3}
    if large:
        yield Found(
            layers=tuple(large),
            message=f"eval mode multiplies a channel by {max(large.values()):.3g}.",
            numbers={"scale": max(large.values()), "threshold": 1e3},
            fix=manual("find out why the variance is so small"),
        )

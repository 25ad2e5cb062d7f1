"""NaN or infinity in weight or bias.

## What it does

Finds NaN and infinity in the weight and bias of batch norms.

## Why is this bad?

Every result that passes the channel is NaN; the training diverged.

## Known problems

None.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(3).eval()
    >>> layer.running_mean += 0.1
    >>> with torch.no_grad():
    ...     layer.bias[0] = float("inf")
    >>> bnkit.diagnose(layer).findings[0].code
    'BN407'

## Use instead

A checkpoint from before the divergence.

## Fix safety

Manual.

## References

pytorch/pytorch issue 1206.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN407", "nonfinite-affine")
def check(evidence: Evidence) -> Iterator[Found]:
    """Any value that is not finite."""
    names = tuple(
        r.name
        for r in evidence.records
        if any(p is not None and not np.isfinite(p).all() for p in (r.weight, r.bias))
    )
    if names:
        yield Found(
            layers=names,
            message="NaN or infinity in weight or bias: the training diverged.",
            severity=Severity.ERROR,
            fix=manual("go back to an earlier checkpoint"),
        )

"""Channels that do not vary within a batch.

## What it does

With batches: the batch variance is below eps in at least 1 % of the channels.

## Why is this bad?

The channel carries nothing, and normalizing it divides by the square root of eps.

## Known problems

Pruned channels, and dead units in front.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(4)
    >>> x = torch.randn(640, 4); x[:, 2] = 7
    >>> [f.code for f in bnkit.diagnose(model, x, "train").findings]
    ['BN508']

## Use instead

Find out which unit in front is dead.

## Fix safety

Manual.

## References

BVLC/caffe issue 3963.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN508", "constant-channel", needs=("records", "probe"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Shares of constant channels."""
    if evidence.probe is None:
        return
    shares = {p.name: p.constant for p in evidence.probe.in_order if p.constant >= 0.01}
    if shares:
        yield Found(
            layers=tuple(shares),
            message=f"up to {max(shares.values()):.0%} of the channels do not vary within a batch.",
            certainty="measured",
            numbers={"share": max(shares.values()), "threshold": 0.01},
            fix=manual("look at the layer before"),
        )

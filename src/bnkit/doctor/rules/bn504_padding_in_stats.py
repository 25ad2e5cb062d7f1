"""Padding of sequences enters the statistics.

## What it does

With at least two batches: over inputs (batch, channels, length) counts the positions in a tail of
bitwise equal ones, sample by sample. A warning when those are more than 10 % of all, and their
share is not the same in every batch.

## Why is this bad?

The padding pulls mean and variance towards its constant, and in each batch by another amount: the
same sentence is normalized otherwise beside a longer one.

## Known problems

A constant end that is part of the signal (silence, a margin) looks the same. Padding that went
through a convolution or another batch norm first is no longer constant at its border, and images
are not examined.

## Example

    >>> import torch, bnkit
    >>> x = torch.randn(128, 4, 20)
    >>> for row, length in zip(x, torch.randint(5, 20, (128,)).tolist()):
    ...     row[:, length:] = 0
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Conv1d(4, 2, 3))
    >>> [f.code for f in bnkit.diagnose(model, x, "train").findings]
    ['BN504']

## Use instead

`bnkit.nn.MaskedBatchNorm1d` with the padding mask, or layer normalization.

## Fix safety

Manual: the network has to be trained again.

## References

pytorch/pytorch issues 70529, 25910, 30414.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

LARGE_SHARE = 0.1


@rule("BN504", "padding-in-stats", needs=("records", "probe"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Constant tails whose share varies."""
    if evidence.probe is None:
        return
    found = {}
    for seen in evidence.probe.in_order:
        if len(seen.tails) > 1 and len(set(seen.tails)) > 1:
            share = sum(seen.tails) / len(seen.tails)
            if share > LARGE_SHARE:
                found[seen.name] = share
    if found:
        yield Found(
            layers=tuple(found),
            message=f"{max(found.values()):.0%} of the positions are padding, bitwise equal to the "
            "end of their sequence, and count like all others.",
            certainty="measured",
            numbers={"share": max(found.values()), "threshold": LARGE_SHARE},
            fix=manual("bnkit.nn.MaskedBatchNorm1d with the padding mask"),
        )

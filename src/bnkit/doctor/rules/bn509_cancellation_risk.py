"""Means so large beside the deviations that digits are lost.

## What it does

With batches: |mean| / deviation of a channel above 1e3 in float32, or above 30 in 16 bits.

## Why is this bad?

Subtracting the mean cancels the leading digits; variances computed from squares become negative.

## Known problems

None known.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(4)
    >>> [f.code for f in bnkit.diagnose(model, torch.randn(640, 4) + 5e3, "train").findings]
    ['BN509']

## Use instead

Centre the input.

## Fix safety

Manual.

## References

Chan, Golub & LeVeque 1983.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN509", "cancellation-risk", needs=("records", "probe"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Offsets beyond the line of the dtype, in channels that vary."""
    if evidence.probe is None:
        return
    lines = {"float16": 30.0, "bfloat16": 30.0, "float32": 1e3}
    off = {
        p.name: p.offset
        for p in evidence.probe.in_order
        if p.constant == 0 and p.offset > lines.get(p.dtype, 1e12)
    }
    if off:
        yield Found(
            layers=tuple(off),
            message=f"a mean is {max(off.values()):.3g} times its standard deviation: digits are "
            "lost.",
            certainty="measured",
            numbers={"mean_over_deviation": max(off.values())},
            fix=manual("centre the input of the layer"),
        )

"""Running statistics in 16 bits.

## What it does

Finds running statistics in float16 or bfloat16. Error: values that float16 cannot hold, which have
become infinite or zero.

## Why is this bad?

A small step of the average rounds to nothing, so that the statistics stop moving; 70000 becomes
infinite and 1e-8 becomes 0 in float16.

## Known problems

Inference in bfloat16 is often accepted.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(3).eval()
    >>> model.running_mean += 0.5
    >>> bnkit.diagnose(model.half()).findings[0].code
    'BN213'

## Use instead

`bnkit.nn` layers keep their statistics in float32 when the model is converted.

## Fix safety

Safe: convert the layer to float32. What has overflowed stays lost.

## References

pytorch/pytorch issue 96798.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Fix, Found, Severity
from bnkit.doctor.rule import rule


@rule("BN213", "low-precision-stats")
def check(evidence: Evidence) -> Iterator[Found]:
    """Narrow dtypes, and zeros and infinities in them."""
    narrow = [r for r in evidence.records if r.statistics_dtype in {"float16", "bfloat16"}]
    if not narrow:
        return
    lost = [r.name for r in narrow if not r.finite or (np.asarray(r.running_var) == 0).any()]
    yield Found(
        layers=tuple(lost or [r.name for r in narrow]),
        message=f"running statistics in {narrow[0].statistics_dtype}: "
        + ("values overflowed or vanished." if lost else "small updates round to nothing."),
        severity=Severity.ERROR if lost else Severity.WARNING,
        fix=Fix("widen", "safe", "keep batch norms in float32; bnkit fix converts them"),
    )

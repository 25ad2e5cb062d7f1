"""A running variance that no data have.

## What it does

Error: a negative running variance, or running_mean and running_var bit by bit the same. Warning: a
variance below 1e-12.

## Why is this bad?

The square root of a negative number is NaN; `E[x**2] - E[x]**2` in float32 makes such variances.
Equal rows come from a mapping of names that was copied.

## Known problems

Pruned channels are constant and have variance 0.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(3).eval()
    >>> layer.running_mean += 0.1; layer.running_var[1] = -0.5
    >>> bnkit.diagnose(layer).findings[0].code
    'BN203'

## Use instead

Merged moments, as `bnkit.core.merge` computes them.

## Fix safety

Unsafe: `recalibrate`.

## References

pytorch/pytorch issue 5410; fvcore `precise_bn.py` gives -16 at a mean of 1e4.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule


@rule(
    "BN203",
    "impossible-variance",
    purposes=("infer", "finetune", "export"),
    explains=("BN204", "BN207"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Negative, copied, and vanishing variances."""
    readable = [r for r in evidence.with_statistics if r.finite]
    negative = [r.name for r in readable if (np.asarray(r.running_var) < 0).any()]
    copied = [
        r.name
        for r in readable
        if r.name not in negative
        and not r.at_init
        and np.ptp(np.asarray(r.running_mean)) > 0
        and np.array_equal(np.asarray(r.running_mean), np.asarray(r.running_var))
    ]
    done = {*negative, *copied}
    tiny = [r.name for r in readable if r.name not in done and _tiny(r.running_var)]
    for names, text, severity in (
        (negative, "is negative in some channels: eval mode gives NaN.", Severity.ERROR),
        (copied, "equals running_mean bit by bit: it was copied from there.", Severity.ERROR),
        (tiny, "is below 1e-12 in some channels: they are constant.", Severity.WARNING),
    ):
        if names:
            yield Found(
                layers=tuple(names),
                message=f"running_var {text}",
                severity=severity,
                fix=RECALIBRATE,
            )


def _tiny(var: np.ndarray | None) -> bool:
    return var is not None and bool((var < 1e-12).any())

"""NaN or infinity in the running statistics.

## What it does

Finds NaN and infinity in `running_mean` and `running_var`.

## Why is this bad?

One overflow during training enters the average and never leaves it. Training normalizes with the
batch and shows nothing; in eval mode every result that passes the channel is NaN. Measured on
digits: one channel of one layer turns accuracy 0.996 into 0.088.

## Known problems

None.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(3).eval()
    >>> layer.running_var[1] = float("nan")
    >>> bnkit.diagnose(layer).findings[0].code
    'BN202'

## Use instead

`bnkit.nn` layers leave such batches out of the average (`on_nonfinite="skip"`). With mixed
precision, put the buffers back on steps that the scaler skips (BN609).

## Fix safety

Unsafe: `recalibrate` needs data. Afterwards find where the overflow came from.

## References

pytorch/pytorch issues 1206, 88474, 90342, 96798.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule


@rule("BN202", "nonfinite-stats", starred=True, explains=("BN204", "BN203", "BN212", "BN213"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Any NaN or infinity in a running statistic."""
    bad = [r for r in evidence.records if not r.finite]
    if not bad:
        return
    channels = sum(
        int((~np.isfinite(p)).sum())
        for r in bad
        for p in (r.running_mean, r.running_var)
        if p is not None
    )
    yield Found(
        layers=tuple(r.name for r in bad),
        message=f"NaN or infinity in {channels} running statistics: an overflow entered the "
        "average, and eval mode spreads it.",
        severity=Severity.ERROR,
        numbers={"values": channels},
        fix=RECALIBRATE,
    )

"""Statistics that leave few digits to calculate with.

## What it does

Finds layers with a channel whose mean is more than 20 standard deviations from 0, or whose
variances span more than eight powers of ten.

## Why is this bad?

`x - running_mean` then loses digits: at 20 deviations, four bits of the mantissa, which is half of
what bfloat16 has. A layer that spans eight powers of ten cannot be quantized as one.

## Known problems

In float32 nothing is lost that matters. Channels whose variance is below eps are constants, and do
not count.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> layer = torch.nn.BatchNorm1d(2).eval()
    >>> _ = layer.running_mean.fill_(30.0)
    >>> every = Selection(level=Severity.INFO, select=("BN216",))
    >>> bnkit.diagnose(layer, purpose="train", selection=every).findings[0].code
    'BN216'

## Use instead

Center the input; keep batch norm in float32.

## Fix safety

Manual.

## References

BVLC/caffe issue 3963; Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 1.9.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

FAR_MEAN = 20.0
WIDE = 1e8
_DEFAULT_EPS = 1e-5


@rule("BN216", "fragile-scale", info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Far means and wide variances."""
    numbers = {r.name: _fragile(r) for r in evidence.with_statistics}
    off = {n: pair for n, pair in numbers.items() if pair[0] > FAR_MEAN or pair[1] > WIDE}
    if off:
        far, wide = (max(pair[i] for pair in off.values()) for i in (0, 1))
        yield Found(
            layers=tuple(off),
            message=f"a mean is {far:.3g} standard deviations from 0, and the largest variance "
            f"{wide:.3g} times the smallest: fragile in 16 bits.",
            severity=Severity.INFO,
            numbers={"mean_over_sd": far, "variance_ratio": wide},
            fix=manual("center the input of the layer, and keep it in float32"),
        )


def _fragile(record: BatchNormRecord) -> tuple[float, float]:
    """Largest |mean| / sd, and the ratio of the variances, over channels that vary."""
    mean, var = record.running_mean, record.running_var
    if mean is None or var is None or mean.shape != var.shape:
        return 0.0, 1.0
    eps = _DEFAULT_EPS if record.eps is None else record.eps
    real = np.isfinite(mean) & np.isfinite(var) & (var > eps)
    if not real.any():
        return 0.0, 1.0
    far = float(np.max(np.abs(mean[real]) / np.sqrt(var[real])))
    return far, float(np.max(var[real]) / np.min(var[real]))

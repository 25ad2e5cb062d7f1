"""Statistics that do not survive a cast to half precision.

## What it does

For export: finds float32 statistics that float16 cannot hold. A mean or variance above 65504
becomes infinite: an error. A variance below 6e-8 becomes 0, an error where eps does not cover it.

## Why is this bad?

With an infinite variance the channel is the constant `bias`; with an infinite mean it is infinite
or NaN. Measured: 70000 becomes inf, 1e-8 becomes 0.

## Known problems

It says what a cast would do; a program that stays in float32 or bfloat16 has nothing to fear.
Below 1 % of eps a variance of 0 changes nothing, and is not reported.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(4).eval()
    >>> _ = layer.running_var.copy_(torch.tensor([1.0, 2.0, 3.0, 70000.0]))
    >>> [(f.code, f.severity.label) for f in bnkit.diagnose(layer, purpose="export").findings]
    [('BN708', 'error')]

## Use instead

Keep batch norm in float32, or fold it before the cast.

## Fix safety

Manual: leave the layer out of `half()`.

## References

IEEE 754 binary16: largest number 65504, smallest 5.96e-8.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

LARGEST, SMALLEST = 65504.0, 6e-8
_COVERED = 0.01
_DEFAULT_EPS = 1e-5
_FIX = manual("keep batch norm in float32, or fold it before the cast")


@rule("BN708", "half-cast-overflow", purposes=("export",))
def check(evidence: Evidence) -> Iterator[Found]:
    """Numbers outside of what float16 holds."""
    wide = [r for r in evidence.with_statistics if r.statistics_dtype in {"float32", "float64"}]
    large = {r.name: _largest(r) for r in wide}
    large = {n: value for n, value in large.items() if value > LARGEST}
    if large:
        yield Found(
            layers=tuple(large),
            message=f"a statistic of {max(large.values()):.6g} becomes infinite in float16.",
            severity=Severity.ERROR,
            numbers={"largest": max(large.values()), "threshold": LARGEST},
            fix=_FIX,
        )
    small = [r.name for r in wide if _vanishes(r)]
    if small:
        yield Found(
            layers=tuple(small),
            message="a variance becomes 0 in float16, and eps does not stand in for it.",
            severity=Severity.ERROR,
            numbers={"threshold": SMALLEST},
            fix=_FIX,
        )


def _largest(record: BatchNormRecord) -> float:
    parts = [np.abs(p) for p in (record.running_mean, record.running_var) if p is not None]
    finite = np.concatenate([p[np.isfinite(p)] for p in parts])
    return float(np.max(finite)) if finite.size else 0.0


def _vanishes(record: BatchNormRecord) -> bool:
    var = record.running_var
    if var is None:
        return False
    eps = _DEFAULT_EPS if record.eps is None else record.eps
    return bool(((var > _COVERED * eps) & (var < SMALLEST)).any())

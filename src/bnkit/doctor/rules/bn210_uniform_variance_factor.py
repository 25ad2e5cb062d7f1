"""Every stored variance is wrong by one and the same factor.

## What it does

With batches: the median log2 ratio of stored and measured variance is at least 0.4 away from 0, the
same in all channels and in all layers. Known factors are named: Caffe's scale factor (999.98),
n/(n-1).

## Why is this bad?

A converter forgot a normalization. Measured on digits: Caffe's factor leaves 0.102 instead of
0.998.

## Known problems

A change of scale of the input moves the first layer alone (BN505). Forwards of zeros after training
shrink the mean by the factor of the variance; BN204 names them.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.BatchNorm1d(8)).eval()
    >>> for layer in model:
    ...     _ = layer.running_var.mul_(999.98)
    >>> bnkit.diagnose(model, torch.randn(640, 8)).findings[0].code
    'BN210'

## Use instead

Divide mean and variance by Caffe's third blob when converting.

## Fix safety

Unsafe: `recalibrate`. Where the factor is known, dividing by it is exact.

## References

BVLC/caffe, `batch_norm_layer.cpp`; docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule
from bnkit.doctor.signatures import common_factor, dummy_forwards, names_factor


@rule(
    "BN210",
    "uniform-variance-factor",
    needs=("records", "probe"),
    purposes=("infer", "finetune", "export"),
    explains=("BN204",),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """One factor over all layers that forwards of zeros do not explain."""
    probe = evidence.probe
    if probe is None or len(probe.layers) < 2:
        return
    factor = common_factor(probe)
    if factor is None or dummy_forwards(probe, evidence.by_name) is not None:
        return
    known = names_factor(factor)
    yield Found(
        layers=tuple(p.name for p in probe.in_order if p.stored is not None),
        message=f"every running_var is {2.0**factor:.4g} times what the data have"
        + (f": {known}." if known else ": a converter forgot a factor."),
        severity=Severity.ERROR,
        certainty="measured",
        cause="caffe-factor" if "Caffe" in known else "factor",
        numbers={"factor": 2.0**factor, "r50": factor},
        fix=RECALIBRATE,
    )

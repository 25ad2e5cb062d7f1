"""A batch norm that the forward pass never calls.

## What it does

With batches: lists batch norms that no batch reached.

## Why is this bad?

Its statistics are those of initialization or of another time; recalibration leaves them alone.

## Known problems

Auxiliary heads and conditional branches.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.used, self.spare = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    ...     def forward(self, x):
    ...         return self.used(x).relu()
    >>> every = Selection(level=Severity.INFO, select=("BN108",))
    >>> found = bnkit.diagnose(Net(), torch.randn(64, 3), "train", selection=every)
    >>> [(f.code, f.layers) for f in found.findings]
    [('BN108', ('spare',))]

## Use instead

Remove it, or call it.

## Fix safety

Manual.

## References

fvcore `precise_bn.py` turns such layers into mean 0 and variance 0.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN108", "unused-bn", needs=("records", "probe"), info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers without a call."""
    if evidence.probe is not None and evidence.probe.silent:
        yield Found(
            layers=evidence.probe.silent,
            message="no batch reached it: it is unused, or belongs to another branch.",
            severity=Severity.INFO,
            certainty="measured",
            fix=manual("remove it, or give batches that reach it"),
        )

"""A batch norm with all weights zero that is not the end of a residual branch.

## What it does

Finds layers whose weight is exactly 0 in every channel and whose result does not meet an addition.

## Why is this bad?

Initializing the last batch norm of a residual branch with 0 lets the block start as the identity.
In a plain chain it stops everything: the output is constant and every gradient behind it is 0.
Measured on digits: accuracy 0.080.

## Known problems

Additions hidden in a function that could not be traced.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> _ = torch.nn.init.zeros_(model[1].weight)
    >>> bnkit.diagnose(model, purpose="train").findings[0].code
    'BN402'

## Use instead

1 everywhere but at the end of a residual branch.

## Fix safety

Manual: set the weight to 1 and train again.

## References

Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.flow import Flow
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN402", "zero-weight-off-residual", needs=("records", "flow"), explains=("BN401", "BN204"))
def check(evidence: Evidence) -> Iterator[Found]:
    """All weights zero, and no addition behind."""
    if evidence.flow is None:
        return
    zero = {r.name for r in evidence.records if r.weight is not None and not r.weight.any()}
    names = tuple(n for n in zero if not _meets_addition(evidence.flow, n))
    if names:
        yield Found(
            layers=names,
            message="every weight is 0 and no addition follows: the output is constant and the "
            "gradients behind it are 0.",
            severity=Severity.ERROR,
            fix=manual("initialize the weight with 1"),
        )


def _meets_addition(flow: Flow, name: str) -> bool:
    nodes = [n for n in flow.batch_norms() if n.layer == name]
    passed = ("view", "dropout", "activation", "pool", "other")
    return not nodes or any(a.kind == "add" for n in nodes for a in flow.after(n, skip=passed))

"""A batch norm on the input itself.

## What it does

Finds batch norms that read an input of the network, maybe reshaped.

## Why is this bad?

Nothing, by itself: it is a preprocessing that is learned. But then the mean and variance of the
data are known only from batches, and a shift of the input hides in this layer.

## Known problems

A deliberate normalizer of the input; none of 807 published networks has one.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    >>> every = Selection(level=Severity.INFO)
    >>> [f.code for f in bnkit.diagnose(model, purpose="train", selection=every).findings]
    ['BN112']

## Use instead

Standardize the data once, with the mean and deviation of the training set.

## Fix safety

Manual.

## References

Census of docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.rule import rule


@rule("BN112", "bn-first", needs=("records", "flow"), info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Inputs as producers."""
    flow = evidence.flow
    if flow is None:
        return
    names = []
    for node in flow.batch_norms():
        before = flow.before(node, skip=("view", "transpose"))
        if before is not None and before.kind == "input":
            names.append(node.layer)
    if names:
        yield Found(
            layers=tuple(dict.fromkeys(names)),
            message="it normalizes an input of the network.",
            severity=Severity.INFO,
        )

"""An activation directly in front of a batch norm.

## What it does

Finds batch norms whose input is the result of an activation.

## Why is this bad?

Nothing, by itself: 7.8 % of published networks do it on purpose. It says that the order is not
that of the first paper.

## Known problems

By design in pre-activation networks and many others.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 2))
    >>> every = Selection(level=Severity.INFO)
    >>> [f.code for f in bnkit.diagnose(model, purpose="train", selection=every).findings]
    ['BN113']

## Use instead

Either order; keep the one the weights were trained with.

## Fix safety

Manual.

## References

Census of docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.rule import rule


@rule("BN113", "act-before-bn", needs=("records", "flow"), info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Activations as producers."""
    flow = evidence.flow
    if flow is None:
        return
    names = []
    for node in flow.batch_norms():
        before = flow.before(node)
        if before is not None and before.kind == "activation":
            names.append(node.layer)
    if names:
        yield Found(
            layers=tuple(dict.fromkeys(names)),
            message="its input is the result of an activation.",
            severity=Severity.INFO,
        )

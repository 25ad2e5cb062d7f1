"""A batch norm directly behind a batch norm.

## What it does

Finds a batch norm whose input is the result of another one that feeds nothing else.

## Why is this bad?

The second normalizes what is normalized: it wastes time and a set of parameters, and usually is a
copy that was forgotten.

## Known problems

Re-parameterized branches give their result to others too, and are exempt. None of 807 published
networks does it.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3))
    >>> bnkit.diagnose(model, purpose="train").findings[0].code
    'BN105'

## Use instead

One of them.

## Fix safety

Safe in eval mode: two scales and shifts compose to one.

## References

Census of docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN105", "double-bn", needs=("records", "flow"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Pairs of batch norms with nothing between and nothing beside."""
    flow = evidence.flow
    if flow is None:
        return
    names = []
    for node in flow.batch_norms():
        before = flow.before(node)
        if before is not None and before.kind == "batch_norm" and len(flow.consumers(before)) == 1:
            names.append(node.layer)
    if names:
        yield Found(
            layers=tuple(dict.fromkeys(names)),
            message="directly behind another batch norm: it normalizes what is normalized.",
            fix=manual("remove one of them"),
        )

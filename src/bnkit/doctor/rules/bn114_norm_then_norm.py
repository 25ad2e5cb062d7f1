"""A batch norm whose result is normalized again, by another normalization.

## What it does

Finds batch norms that feed layer, group or instance normalization directly.

## Why is this bad?

The second normalization removes part of what the first one does: instance normalization all of its
scale and shift, which then are trained for nothing.

## Known problems

Hybrids that mean it.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> nn = torch.nn
    >>> model = nn.Sequential(
    ...     nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.LayerNorm(6), nn.Linear(6, 2)
    ... )
    >>> every = Selection(level=Severity.INFO)
    >>> [f.code for f in bnkit.diagnose(model, purpose="train", selection=every).findings]
    ['BN114']

## Use instead

One of the two.

## Fix safety

Manual: the network has to be trained again.

## References

The formulas: instance normalization of `a x + b` per channel is that of `x`.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN114", "norm-then-norm", needs=("records", "flow"), info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Other normalizations as consumers."""
    flow = evidence.flow
    if flow is None:
        return
    names = [
        node.layer
        for node in flow.batch_norms()
        if any(after.kind == "norm" for after in flow.after(node, skip=("view", "transpose")))
    ]
    if names:
        yield Found(
            layers=tuple(dict.fromkeys(names)),
            message="its result goes straight into another normalization.",
            severity=Severity.INFO,
            fix=manual("keep one of the two"),
        )

"""Weight decay on the weight and bias of batch norms.

## What it does

Reads the groups of the optimizer. Remark: weight decay on weight or bias; warning from 1e-2 on.

## Why is this bad?

Decay pulls the scale to 0 and switches channels off; it regularizes nothing that the next layer
does not undo.

## Known problems

The default of many good recipes.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(3)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.05)
    >>> bnkit.diagnose(model, purpose="train", optimizer=optimizer).findings[0].code
    'BN404'

## Use instead

A group without weight decay for every parameter of one dimension.

## Fix safety

Manual.

## References

van Laarhoven 2017, "L2 Regularization versus Batch and Weight Normalization"; Summers & Dinneen
2020.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN404", "decay-on-weight-and-bias", needs=("records", "optimizer"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Decay beyond nothing, and beyond 1e-2."""
    decayed = {} if evidence.optimizer is None else evidence.optimizer.decayed
    if decayed:
        most = max(decayed.values())
        yield Found(
            layers=tuple(decayed),
            message=f"weight decay of {most:g} on weight and bias.",
            severity=Severity.WARNING if most >= 1e-2 else Severity.INFO,
            numbers={"weight_decay": most, "threshold": 1e-2},
            fix=manual("a parameter group with weight_decay=0 for batch norms"),
        )

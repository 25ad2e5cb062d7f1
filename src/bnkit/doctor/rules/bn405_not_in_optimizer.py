"""Trainable parameters of batch norms that the optimizer does not have.

## What it does

Compares parameters that require gradients with the groups of the optimizer.

## Why is this bad?

They are never updated; usually the optimizer was built before the layers were replaced.

## Known problems

Left out on purpose: then set `requires_grad=False`.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    >>> bnkit.diagnose(model, purpose="train", optimizer=optimizer).findings[0].code
    'BN405'

## Use instead

Build the optimizer from `model.parameters()`, after the last change of the model.

## Fix safety

Safe: add the group.

## References

docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN405",
    "not-in-optimizer",
    needs=("records", "optimizer"),
    purposes=("train", "finetune"),
    explains=("BN403",),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers in no group."""
    absent = () if evidence.optimizer is None else evidence.optimizer.absent
    if absent:
        yield Found(
            layers=absent,
            message="weight or bias requires gradients and is in no group of the optimizer.",
            severity=Severity.ERROR,
            fix=manual("add the parameters to the optimizer"),
        )

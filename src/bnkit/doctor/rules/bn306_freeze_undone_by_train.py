"""Frozen batch norms that the next `train()` thaws.

## What it does

When the root is in training mode and some batch norms are not, calls `train()` on a copy and looks
which of them go back to training mode.

## Why is this bad?

Every epoch begins with `model.train()`. A freeze that was done once, before the loop, holds for one
epoch, or for none.

## Known problems

Frameworks that freeze again at every epoch.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    >>> _ = model[1].eval()
    >>> bnkit.diagnose(model, purpose="finetune").findings[0].code
    'BN306'

## Use instead

`bnkit.nn.freeze_(model)`, which survives `train()`, or a `FrozenBatchNorm2d`.

## Fix safety

Safe: the function in eval mode is unchanged.

## References

Lightning-AI/pytorch-lightning issues 2551, 18930; pytorch/pytorch pull request 38084.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Fix, Found
from bnkit.doctor.rule import rule


@rule(
    "BN306",
    "freeze-undone-by-train",
    needs=("records", "model"),
    purposes=("train", "finetune"),
    starred=True,
    explains=("BN305",),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers in eval mode that the copy had thawed after `train()`."""
    thawed = () if evidence.model is None else evidence.model.thawed
    if thawed:
        yield Found(
            layers=thawed,
            message="frozen by eval(), and the next model.train() puts them back into training "
            "mode.",
            numbers={"layers": len(thawed)},
            fix=Fix("freeze", "safe", "bnkit.nn.freeze_(model) survives train()"),
        )

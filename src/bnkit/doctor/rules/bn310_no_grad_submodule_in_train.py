"""A frozen submodule whose batch norms are in training mode.

## What it does

Finds submodules (a teacher, a loss network) without a trainable parameter that hold batch norms in
training mode.

## Why is this bad?

The teacher's statistics drift, and its answers depend on the batch.

## Known problems

Some methods of distillation want the teacher's batch statistics.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> teacher = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).requires_grad_(False)
    >>> model = nn.ModuleDict({"student": nn.Linear(4, 3), "teacher": teacher})
    >>> bnkit.diagnose(model, purpose="train").findings[0].code
    'BN310'

## Use instead

`teacher.eval()`, after every `train()` of the whole.

## Fix safety

Safe: `eval()` on the submodule.

## References

pytorch/pytorch issue 86590.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN310",
    "no-grad-submodule-in-train",
    needs=("records", "model"),
    purposes=("train", "finetune"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Frozen parts with live batch norms."""
    parts = {} if evidence.model is None else evidence.model.frozen_parts or {}
    for part, names in parts.items():
        yield Found(
            layers=names,
            message=f"{part!r} has no trainable parameter, and its batch norms are in training "
            "mode: its statistics drift.",
            fix=manual(f"call eval() on {part!r} after train()"),
        )

"""Weight and bias at their first values over statistics that moved.

## What it does

Finds layers with weight exactly 1 and bias exactly 0 whose running statistics have moved, in a
network in which other layers have learned theirs.

## Why is this bad?

They are in no group of the optimizer, or were reset.

## Known problems

Frozen on purpose.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(4)).eval()
    >>> for layer in model:
    ...     _ = layer.running_mean.add_(0.2)
    >>> _ = torch.nn.init.uniform_(model[0].weight)
    >>> [f.code for f in bnkit.diagnose(model).findings if f.code[2] == "4"]
    ['BN403']

## Use instead

Give the optimizer `model.parameters()`.

## Fix safety

Manual: train them.

## References

docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN403", "affine-never-trained", purposes=("infer", "finetune", "export"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers at their first parameters beside others that are not."""
    layers = [r for r in evidence.with_statistics if r.weight is not None and not r.fixed]
    stuck = [r.name for r in layers if r.affine_at_init and not r.at_init]
    if stuck and len(stuck) < len(layers):
        yield Found(
            layers=tuple(stuck),
            message="weight is exactly 1 and bias exactly 0 although the statistics moved and "
            "other layers learned: they were never trained.",
            fix=manual("add them to the optimizer"),
        )

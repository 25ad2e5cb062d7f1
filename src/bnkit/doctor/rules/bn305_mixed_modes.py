"""Some batch norms in training mode and some not.

## What it does

Compares the mode of each batch norm with that of the root.

## Why is this bad?

Either a freeze that is meant, or an `eval()` that reached only a part.

## Known problems

Proper freezing by `bnkit.nn.freeze_` is not reported.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    >>> _ = model[0].eval()
    >>> every = Selection(level=Severity.INFO, ignore=("BN306", "BN112"))
    >>> [f.code for f in bnkit.diagnose(model, purpose="train", selection=every).findings]
    ['BN305']

## Use instead

`bnkit.nn.freeze_`.

## Fix safety

Manual.

## References

pytorch/pytorch issue 86590.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.rule import rule


@rule("BN305", "mixed-modes", needs=("records", "model"), info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers in another mode than the root."""
    if evidence.model is None:
        return
    root = evidence.model.training
    other = tuple(r.name for r in evidence.records if r.training is not root and not r.fixed)
    if other:
        yield Found(
            layers=other,
            message=f"training is {not root}, and that of the root is {root}.",
            severity=Severity.INFO,
        )

"""A batch norm that the model does not know of.

## What it does

Finds batch norms in plain lists and dictionaries of modules, which `named_modules()` does not
list.

## Why is this bad?

Its parameters are not trained, `eval()` does not reach it, and checkpoints leave it out.

## Known problems

Caches of modules that are registered elsewhere are not reported.

## Example

    >>> import torch, bnkit
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.blocks = [torch.nn.BatchNorm1d(3)]
    >>> bnkit.diagnose(Net(), purpose="train").findings[0].code
    'BN109'

## Use instead

`torch.nn.ModuleList`, `torch.nn.ModuleDict`.

## Fix safety

Safe: register it.

## References

PyTorch documentation of ModuleList.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN109", "unregistered-bn", needs=("model",))
def check(evidence: Evidence) -> Iterator[Found]:
    """Attributes that hide batch norms."""
    hidden = () if evidence.model is None else evidence.model.hidden
    if hidden:
        yield Found(
            layers=(),
            message=f"{', '.join(hidden)}: batch norms in a plain list or dictionary are not "
            "trained, not saved, and not reached by eval().",
            severity=Severity.ERROR,
            numbers={"places": len(hidden)},
            fix=manual("use torch.nn.ModuleList or ModuleDict"),
        )

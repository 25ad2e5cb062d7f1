"""A batch norm that is constructed during the forward pass.

## What it does

With batches: counts the constructors of batch norms that run in one forward pass.

## Why is this bad?

A new layer has new statistics each time: nothing is learned, eval mode normalizes with 0 and 1,
and it is in training mode.

## Known problems

Lazy layers are constructed before, and are not reported.

## Example

    >>> import torch, bnkit
    >>> class Net(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.nn.BatchNorm1d(3)(x)
    >>> bnkit.diagnose(Net(), torch.randn(64, 3), purpose="train").findings[0].code
    'BN110'

## Use instead

Construct layers in `__init__`.

## Fix safety

Manual.

## References

docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN110", "bn-built-in-forward", needs=("model", "behaviour"), explains=("BN303",))
def check(evidence: Evidence) -> Iterator[Found]:
    """Constructors that ran."""
    built = () if evidence.model is None else evidence.model.built_in_forward
    if built:
        yield Found(
            layers=(),
            message=f"{', '.join(built)} is constructed in forward: its statistics live for one "
            "call.",
            severity=Severity.ERROR,
            certainty="measured",
            fix=manual("construct it in __init__"),
        )

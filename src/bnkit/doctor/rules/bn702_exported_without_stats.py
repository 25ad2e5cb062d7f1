"""A batch norm that was exported without running statistics.

## What it does

Finds batch norm operators of a program that were given no running statistics.

## Why is this bad?

They normalize with the batch for ever.

## Known problems

Instance norm written as batch norm.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(3, track_running_stats=False).eval()
    >>> program = torch.export.export(model, (torch.randn(8, 3),))
    >>> bnkit.diagnose(program).findings[0].code
    'BN702'

## Use instead

Track and recalibrate, then export.

## Fix safety

Manual.

## References

pytorch/pytorch issue 52867.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN702", "exported-without-stats", needs=("program",), purposes=("infer", "export"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Operators without statistics."""
    program = evidence.program
    names = [] if program is None else [n.name for n in program.norms if not n.has_statistics]
    if names:
        yield Found(
            layers=tuple(names),
            message="exported without running statistics: the program normalizes with each batch.",
            severity=Severity.ERROR,
            fix=manual("track running statistics, recalibrate, export again"),
        )

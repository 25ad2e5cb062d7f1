"""A batch norm behind a convolution in a program for inference.

## What it does

Finds batch norm operators in eval mode whose producer is a convolution or linear layer that feeds
nothing else.

## Why is this bad?

A scale and shift that could be part of the weights costs time and memory.

## Known problems

Compilers may fold by themselves.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).eval()
    >>> model[1].running_mean += 0.1
    >>> program = torch.export.export(model, (torch.randn(8, 4),))
    >>> every = Selection(level=Severity.INFO, select=("BN7",))
    >>> [f.code for f in bnkit.diagnose(program, selection=every).findings]
    ['BN705']

## Use instead

Fold before exporting.

## Fix safety

Safe after a check that results agree.

## References

Jacob et al. 2018, section 3.2.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.flow import kind_of
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN705", "unfolded-bn", needs=("program",), purposes=("infer", "export"), info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Operators that could be folded."""
    program = evidence.program
    names = [
        n.name
        for n in ([] if program is None else program.norms)
        if not n.training
        and n.alone
        and n.producer is not None
        and kind_of(n.producer) in {"conv", "linear"}
    ]
    if names:
        yield Found(
            layers=tuple(names),
            message="could be folded into the layer before it.",
            severity=Severity.INFO,
            fix=manual("fold before exporting"),
        )

"""A program that was exported in training mode.

## What it does

Looks at the batch norm operators of a `torch.export` program or an ONNX file: `training=True`, the
operators `_native_batch_norm_legit` and `_native_batch_norm_legit_functional`, `training_mode=1`,
or more than one live output.

## Why is this bad?

The program normalizes with the batch for ever: an exported program has no `eval()`.

## Known problems

Programs that are exported to go on training: use the purpose "train".

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> program = torch.export.export(model.train(), (torch.randn(8, 4),))
    >>> bnkit.diagnose(program).findings[0].code
    'BN701'

## Use instead

`torch.export.export(model.eval(), ...)`.

## Fix safety

Manual: export again.

## References

pytorch/pytorch issues 151726, 103681; microsoft/onnxscript issue 1791.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN701",
    "exported-in-train-mode",
    needs=("program",),
    purposes=("infer", "export"),
    starred=True,
    explains=("BN201", "BN205", "BN204"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Operators that normalize with the batch although they have statistics."""
    program = evidence.program
    if program is None:
        return
    live = [n for n in program.norms if n.training and n.has_statistics]
    if live:
        yield Found(
            layers=tuple(n.name for n in live),
            message=f"{len(live)} of {len(program.norms)} batch norms were exported in training "
            f"mode ({live[0].op}): the program normalizes with each batch, and has no eval().",
            severity=Severity.ERROR,
            numbers={"operators": len(live)},
            fix=manual("export again from model.eval()"),
        )

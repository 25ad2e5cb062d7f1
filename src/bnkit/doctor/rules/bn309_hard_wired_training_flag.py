"""`F.batch_norm` with `training=True` in a network in eval mode.

## What it does

Looks at the direct calls of `torch.nn.functional.batch_norm` in a trace of the network in eval
mode.

## Why is this bad?

`eval()` cannot reach a constant: inference normalizes with the batch, and moves the statistics.

## Known problems

Instance norm written as batch norm over a reshaped input passes no statistics, and is not reported.

## Example

    >>> import torch, bnkit
    >>> class Fixed(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.register_buffer("mean", torch.zeros(3))
    ...         self.register_buffer("var", torch.ones(3))
    ...     def forward(self, x):
    ...         return torch.nn.functional.batch_norm(x, self.mean, self.var, training=True)
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), Fixed()).eval()
    >>> bnkit.diagnose(model, torch.randn(64, 3)).findings[0].code
    'BN309'

## Use instead

`training=self.training`.

## Fix safety

Manual: one word of the source.

## References

docs/doctor.md, section on modes.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN309",
    "hard-wired-training-flag",
    needs=("flow",),
    purposes=("infer", "finetune", "export"),
    explains=("BN303", "BN304"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Functional calls with statistics and a constant True."""
    flow = evidence.flow
    if flow is None or evidence.program is not None:
        return
    calls = [
        n
        for n in flow.batch_norms()
        if n.options.get("training") == 1.0 and n.options.get("statistics") == 1.0
    ]
    if calls:
        yield Found(
            layers=(),
            message=f"{len(calls)} calls of F.batch_norm have training=True in eval mode: eval() "
            "does not reach them.",
            severity=Severity.ERROR,
            certainty="measured",
            numbers={"calls": len(calls)},
            fix=manual("pass training=self.training"),
        )

"""Training goes on in eval mode.

## What it does

In a watched loop: batch norms in eval mode at an optimizer step that had been in training mode
before.

## Why is this bad?

After the first validation nothing calls `train()` again: the rest of the training runs without
batch statistics.

## Known problems

Freezing that is meant to begin later.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> def step(x):
    ...     model(x).sum().backward(); optimizer.step()
    >>> x = torch.randn(64, 4)
    >>> with bnkit.watch(model, optimizer) as seen:
    ...     step(x)
    ...     _ = model.eval()
    ...     step(x)
    >>> seen.diagnose().findings[0].code
    'BN603'

## Use instead

`model.train()` at the start of every epoch.

## Fix safety

Manual: the loop sets the mode.

## References

docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN603", "mode-not-restored", needs=("journal",), explains=("BN306", "BN305"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers that changed to eval mode between steps."""
    names = () if evidence.journal is None else evidence.journal.eval_steps
    if names:
        yield Found(
            layers=names,
            message="in eval mode at an optimizer step, and in training mode at an earlier one.",
            severity=Severity.ERROR,
            certainty="measured",
            fix=manual("model.train() at the start of every epoch"),
        )

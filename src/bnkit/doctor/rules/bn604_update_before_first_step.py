"""Running statistics that moved before training began.

## What it does

In a watched loop over a fresh model: updates without gradients before the first optimizer step.

## Why is this bad?

A shape probe, a summary, FLOP counting or tracing ran in training mode; with a small weight of the
new batch its zeros stay long.

## Known problems

Data-dependent initialization.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> def step(x):
    ...     model(x).sum().backward(); optimizer.step()
    >>> x = torch.randn(64, 4)
    >>> with bnkit.watch(model, optimizer) as seen:
    ...     with torch.no_grad():
    ...         _ = model(torch.zeros(2, 4))
    ...     step(x)
    >>> [f.code for f in seen.diagnose().findings if f.code == "BN604"]
    ['BN604']

## Use instead

`model.eval()` for such passes, or `reset_running_stats()` after them.

## Fix safety

Safe before the first step: reset the statistics.

## References

docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN604", "update-before-first-step", needs=("journal",), explains=("BN602",))
def check(evidence: Evidence) -> Iterator[Found]:
    """Quiet updates of fresh layers before the first step."""
    journal = evidence.journal
    if journal is None or not journal.steps:
        return
    early = {n: k for n, k in journal.quiet_before.items() if n in journal.fresh and k > 0}
    if early:
        yield Found(
            layers=tuple(early),
            message=f"updated {max(early.values())} times before the first optimizer step: a probe "
            "or a summary ran in training mode.",
            certainty="measured",
            numbers={"updates": max(early.values())},
            fix=manual("run such passes in eval mode, or reset_running_stats() after them"),
        )

"""Running statistics that move while gradients are off.

## What it does

In a watched loop: counts updates under `no_grad` or `inference_mode`, outside of backward passes.

## Why is this bad?

Validation runs in training mode: the statistics learn the validation data.

## Known problems

Deliberate recalibration. A frozen second network (a teacher, a momentum encoder) that never gets
gradients is left to BN310 and BN510.

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
    ...     with torch.no_grad():
    ...         _ = model(x)
    >>> seen.diagnose().findings[0].code
    'BN601'

## Use instead

`model.eval()` before validation.

## Fix safety

Safe: `eval()` in the loop.

## References

pytorch/pytorch issue 5406.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN601", "stats-move-without-grad", needs=("journal",), explains=("BN602",))
def check(evidence: Evidence) -> Iterator[Found]:
    """Updates without gradients after training began."""
    journal = evidence.journal
    if journal is None or not journal.steps:
        return
    moved = {n: k - journal.quiet_before.get(n, 0) for n, k in journal.without_grad.items()}
    teachers = {r.name for r in evidence.records if r.trainable is False}
    teachers -= {n for n, k in journal.forwards_with_grad.items() if k}
    moved = {n: k for n, k in moved.items() if k > 0 and n not in teachers}
    if moved:
        yield Found(
            layers=tuple(moved),
            message=f"updated {max(moved.values())} times while gradients were off: evaluation "
            "runs in training mode.",
            severity=Severity.ERROR,
            certainty="measured",
            numbers={"updates": max(moved.values())},
            fix=manual("model.eval() before evaluation, model.train() after it"),
        )

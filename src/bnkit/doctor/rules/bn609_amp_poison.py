"""A batch with an overflow that entered the running statistics.

## What it does

In a watched loop: the running statistics became NaN or infinite.

## Why is this bad?

The gradient scaler skips the step, and the statistics have moved already: they never recover.

## Known problems

None.

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
    ...     _ = model(torch.full((64, 4), float("inf")))
    >>> seen.diagnose().findings[0].code
    'BN609'

## Use instead

`bnkit.nn.commit_on_step`, or `bnkit.nn` layers, which leave such batches out.

## Fix safety

Unsafe: `recalibrate`.

## References

pytorch/pytorch issues 90342, 96798.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule


@rule("BN609", "amp-poison", needs=("journal",), explains=("BN202",))
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers that turned while they were watched."""
    poisoned = {} if evidence.journal is None else evidence.journal.poisoned
    if poisoned:
        first = min(poisoned.values())
        yield Found(
            layers=tuple(poisoned),
            message=f"the running statistics became NaN or infinite after step {first}.",
            severity=Severity.ERROR,
            certainty="measured",
            numbers={"step": first},
            fix=RECALIBRATE,
        )

"""Gradients of several small batches are added up, but each is normalized alone.

## What it does

In a watched loop: finds layers with several updates per optimizer step whose calls have fewer than
32 values per channel.

## Why is this bad?

Accumulation makes the batch of the gradient larger, not that of the statistics: each micro-batch
normalizes with its own few values, as if it were trained at that batch size.

## Known problems

Several passes per step for another reason (BN602) look the same.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with bnkit.watch(model, optimizer) as seen:
    ...     for _ in range(4):
    ...         model(torch.randn(8, 4)).square().sum().backward()
    ...     optimizer.step()
    >>> every = Selection(level=Severity.INFO, select=("BN608",))
    >>> seen.diagnose(selection=every).findings[0].found.numbers["updates_per_step"]
    4

## Use instead

`bnkit.nn.accumulate_exactly`, larger micro-batches, or SyncBatchNorm.

## Fix safety

Manual.

## References

Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

FEW = 32


@rule(
    "BN608",
    "accumulation-is-not-batch",
    needs=("journal",),
    purposes=("train", "finetune"),
    info=True,
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Several passes with gradients per step, each of few values."""
    journal = evidence.journal
    if journal is None:
        return
    few = {
        name: journal.fewest_values[name]
        for name, k in journal.forwards_with_grad.items()
        if k > 1 and journal.fewest_values.get(name, FEW) < FEW
    }
    if few:
        most = max(journal.forwards_with_grad[n] for n in few)
        yield Found(
            layers=tuple(few),
            message=f"one step adds up {most} passes, and each is normalized with "
            f"{min(few.values())} values per channel of its own.",
            severity=Severity.INFO,
            certainty="measured",
            numbers={
                "updates_per_step": most,
                "values_per_channel": min(few.values()),
                "threshold": FEW,
            },
            fix=manual("bnkit.nn.accumulate_exactly, or larger micro-batches"),
        )

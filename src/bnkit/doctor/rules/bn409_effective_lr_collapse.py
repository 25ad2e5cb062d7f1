"""Weights before a batch norm grow without bound, and learning stops.

## What it does

In a watched loop, with its optimizer: finds layers before a batch norm whose weight has no weight
decay and whose norm has grown more than tenfold since the watch began.

## Why is this bad?

Batch norm makes the result independent of the size of those weights, and their gradient inversely
proportional to it: the effective learning rate falls with the square of the norm, here to less than
a hundredth. Nothing in the loss shows it.

## Known problems

A learning rate that is meant to decay in this way. Adam falls with the norm, not its square.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with bnkit.watch(model, optimizer) as seen:
    ...     with torch.no_grad():
    ...         _ = model[0].weight.mul_(20)  # what a long training does
    >>> every = Selection(level=Severity.INFO, select=("BN409",))
    >>> [f.layers for f in seen.diagnose(selection=every).findings]
    [('1',)]

## Use instead

Weight decay on the weights before batch norm, or weight standardization.

## Fix safety

Manual.

## References

van Laarhoven 2017, "L2 Regularization versus Batch and Weight Normalization", equation 7.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

GROWN = 10.0


@rule(
    "BN409",
    "effective-lr-collapse",
    needs=("records", "flow", "optimizer", "journal"),
    purposes=("train", "finetune"),
    info=True,
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Producers without decay that have grown."""
    journal, optimizer = evidence.journal, evidence.optimizer
    if journal is None or optimizer is None:
        return
    free = {n for n, decay in optimizer.weight_decay.items() if decay == 0}
    ratios = {
        r.name: journal.growth.get(r.producer, 0.0) for r in evidence.records if r.producer in free
    }
    grown = {n: ratio for n, ratio in ratios.items() if ratio > GROWN}
    if grown:
        worst = max(grown.values())
        yield Found(
            layers=tuple(grown),
            message=f"the weight before it has no decay and has grown {worst:.3g}-fold: with SGD "
            f"the effective learning rate fell to 1/{worst**2:.3g}.",
            severity=Severity.INFO,
            certainty="measured",
            numbers={"growth": worst, "threshold": GROWN},
            fix=manual("weight decay on the weights before batch norm"),
        )

"""Batches that are not mixed: sorted by class, by file or by time.

## What it does

Variance between the means of the batches at the input of the first batch norm, divided by what
shuffling the same samples would leave; median over channels. Warning above 3, error above 8. Needs
at least 6 batches in the order of training.

## Why is this bad?

Each batch is normalized with the statistics of its own kind, so that the kind is subtracted;
inference cannot do that. Measured on digits sorted by class: accuracy 0.088, ratio 7.7 to 32;
shuffled 0.55 to 1.21; in two blocks 1.2 to 3.1.

## Known problems

Streams, reinforcement learning and episodes are ordered by nature. Batches of validation data need
not be mixed: only when fine-tuning or training is this more than a hint.

## Example

    >>> import torch, bnkit
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> rows = torch.randn(640, 4) + torch.linspace(-3, 3, 640).unsqueeze(1)
    >>> [f.code for f in bnkit.diagnose(model, rows, purpose="train").findings]
    ['BN503']

## Use instead

`DataLoader(..., shuffle=True)`, or a shuffling buffer for streams.

## Fix safety

Manual: the network has to be trained again.

## References

Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 5.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

WARNING, ERROR = 3.0, 8.0


@rule(
    "BN503",
    "non-iid-batches",
    needs=("records", "probe"),
    purposes=("infer", "train", "finetune"),
    starred=True,
    explains=("BN204", "BN501", "BN505", "BN508"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """The first layer's ratio beyond either line."""
    first = None if evidence.probe is None else next(iter(evidence.probe.in_order), None)
    if first is None or first.between is None or first.between <= WARNING:
        return
    severe = first.between > ERROR
    yield Found(
        layers=(first.name,),
        message=f"the means of the batches vary {first.between:.1f} times as much as those of "
        "shuffled batches would: the order is not mixed.",
        severity=Severity.ERROR if severe else Severity.WARNING,
        certainty="measured",
        numbers={"between_batches": first.between, "warning": WARNING, "error": ERROR},
        fix=manual("shuffle the training data, and train again"),
    )

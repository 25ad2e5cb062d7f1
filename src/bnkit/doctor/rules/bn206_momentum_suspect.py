"""A weight of the new batch that freezes the average, or makes it forget.

## What it does

Looks at torch's `momentum`, the weight of the new batch. Error: 0, negative, or above 1. Warning:
0.5 or more. Remark: None, the cumulative average.

## Why is this bad?

At 0 the running statistics stay at 0 and 1 for ever (measured: accuracy 0.380 instead of 0.996). At
0.99 they are those of the last batch alone (0.976 instead of 0.992); 0.99 is TensorFlow's number,
where it weighs the old average.

## Known problems

Recalibration tools set 1.0 for a while. None of 807 published networks has 0.5 or more; the
smallest honest value is 0.0003, so that small values are never reported.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(3, momentum=0.99)
    >>> bnkit.diagnose(model, purpose="train").findings[0].code
    'BN206'

## Use instead

`1 - 0.99 = 0.01` for a network that comes from TensorFlow or Keras.

## Fix safety

Setting the number is safe for training to come. Statistics that it already ruined need
recalibration, which is unsafe.

## References

pytorch/examples issue 289; huggingface/transformers pull request 19454.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Fix, Found, Severity
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule

LARGE = 0.5


@rule(
    "BN206",
    "momentum-suspect",
    starred=True,
    explains=("BN201", "BN204", "BN205", "BN208", "BN308", "BN505"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """One finding for each kind of suspicious number."""
    known = [r for r in evidence.records if r.knows_hyperparameters and r.tracks and not r.fixed]
    impossible = [r for r in known if r.ema_weight is not None and not 0 <= r.ema_weight <= 1]
    zero = [r for r in known if r.ema_weight == 0 and (r.at_init or evidence.purpose == "train")]
    large = [r for r in known if r.ema_weight is not None and LARGE <= r.ema_weight <= 1]
    cumulative = [r for r in known if r.ema_weight is None]
    if impossible:
        yield _found(impossible, "is outside of 0 to 1: the average diverges.", Severity.ERROR)
    if zero:
        yield _found(zero, "is 0: the running statistics never move.", Severity.ERROR)
    if large:
        yield _found(
            large,
            "makes the running statistics those of the last batches alone. TensorFlow's number? "
            "There it weighs the old average: use 1 minus it.",
            Severity.WARNING,
        )
    if cumulative:
        yield _found(
            cumulative,
            "is None, the cumulative average: batches of early training weigh as much as the last.",
            Severity.INFO,
        )


def _found(records: list[BatchNormRecord], text: str, severity: Severity) -> Found:
    value = records[0].ema_weight
    fix = RECALIBRATE if value == 0 else Fix("set-momentum", "safe", "set momentum to 1 minus it")
    return Found(
        layers=tuple(r.name for r in records),
        message=f"momentum={value} {text}",
        severity=severity,
        numbers={} if value is None else {"momentum": value},
        fix=None if value is None else fix,
    )

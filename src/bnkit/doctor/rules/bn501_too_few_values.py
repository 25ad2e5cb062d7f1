"""Batches with too few values per channel to normalize with.

## What it does

Counts the values per channel of a typical call: samples times positions, per replica. Error at 1
(torch refuses) and 2 (every result is plus or minus 1), warning below 8, remark below 32.

## Why is this bad?

Mean and variance of so few values are noise, and training and inference become different networks.
Measured on digits with a multilayer perceptron: 2 values 0.64 to 0.76, 4 values 0.95, 8 values
0.98.

## Known problems

Feature maps have many positions: a convolutional network at batch size 2 lost 0.4 points only. The
count is that of the batches given, which may not be those of training.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> data = torch.randn(16, 4)
    >>> bnkit.diagnose(model, data, purpose="train", batch_size=2).findings[0].code
    'BN501'

## Use instead

A larger batch, `bnkit.nn.SyncBatchNorm` over replicas, `bnkit.nn.accumulate` over micro-batches,
group norm, or frozen statistics when fine-tuning.

## Fix safety

Manual.

## References

Wu & He 2018, "Group Normalization", figure 1; Singh & Shrivastava 2019, "EvalNorm".
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

ERROR, WARNING, REMARK = 2, 8, 32


@rule(
    "BN501",
    "too-few-values",
    needs=("records", "probe"),
    purposes=("train", "finetune"),
    starred=True,
    explains=("BN508", "BN608"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers that learn, with fewer values per channel than the lines."""
    if evidence.probe is None:
        return
    live = {r.name for r in evidence.records if not r.fixed and r.training is not False}
    counts = {p.name: p.fewest_values for p in evidence.probe.in_order if p.name in live}
    few = {name: count for name, count in counts.items() if count < REMARK}
    if not few:
        return
    least = min(few.values())
    severity = Severity.WARNING if least < WARNING else Severity.INFO
    if least <= ERROR:
        severity = Severity.ERROR
    line = {Severity.ERROR: ERROR + 1, Severity.WARNING: WARNING, Severity.INFO: REMARK}[severity]
    yield Found(
        layers=tuple(name for name, count in few.items() if count < line),
        message=f"{least} values per channel in a batch: mean and variance are noise."
        + (" Every result is plus or minus 1." if least == ERROR else ""),
        severity=severity,
        certainty="measured",
        numbers={"values_per_channel": least, "threshold": WARNING},
        fix=manual("larger batches, SyncBatchNorm, accumulation, group norm or frozen statistics"),
    )

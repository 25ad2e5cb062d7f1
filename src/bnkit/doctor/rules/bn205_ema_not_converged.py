"""Too few updates for so small an average: the initial values are still in it.

## What it does

Computes what share of the initial mean 0 and variance 1 is left, `(1 - ema_weight)**batches`.
Warning above 0.05, error above 0.25.

## Why is this bad?

Eval mode normalizes with a mixture of the data and of nothing. Measured on digits: a share of 0.008
costs 0 to 2 points, 0.30 costs 2 to 4, 0.55 costs 9 to 22.

## Known problems

Converters reset `num_batches_tracked`; then the count says too little. A count of 0 with statistics
that moved is therefore not reported.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(3, momentum=0.01)
    >>> for _ in range(40):
    ...     _ = layer(torch.randn(8, 3) + 2)
    >>> bnkit.diagnose(layer.eval()).findings[0].code
    'BN205'

## Use instead

A larger weight of the new batch in short trainings (torch's `momentum`), or recalibration at the
end.

## Fix safety

Unsafe: `recalibrate` needs data.

## References

keras-team/keras issue 3949; tensorflow/tensorflow issue 30109; measured table of docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule

WARNING, ERROR = 0.05, 0.25


@rule(
    "BN205",
    "ema-not-converged",
    purposes=("infer", "finetune", "export"),
    starred=True,
    explains=("BN204",),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """A share of the initial values that matters, where the statistics have moved at all."""
    left = {r.name: _left(r) for r in evidence.with_statistics}
    behind = {name: share for name, share in left.items() if share > WARNING}
    if not behind:
        return
    worst = max(behind.values())
    counts = [r.batches or 0 for r in evidence.records if r.name in behind]
    yield Found(
        layers=tuple(behind),
        message=f"after {min(counts)} batches, {worst:.0%} of the initial mean 0 and variance 1 is "
        "still in the running statistics.",
        severity=Severity.ERROR if worst > ERROR else Severity.WARNING,
        numbers={"initial_share": worst, "threshold": WARNING, "batches": min(counts)},
        fix=RECALIBRATE,
    )


def _left(record: BatchNormRecord) -> float:
    weight, batches = record.ema_weight, record.batches
    if weight is None or not batches or record.fixed or record.at_init or not 0 < weight < 1:
        return 0.0
    return (1 - weight) ** batches

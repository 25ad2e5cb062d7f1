"""A copy with averaged weights whose running statistics were not averaged with them.

## What it does

Compares an EMA, SWA, target or teacher copy with the network it follows (`pair=`): weights that
differ while every running statistic is at its initial value (error), or is bitwise that of the
source (warning).

## Why is this bad?

Averaging `model.parameters()` leaves out the buffers. The copy then normalizes with nothing, or
with the statistics of other weights. Reported in the wild: F1 40 instead of 60.

## Known problems

A teacher that really runs in train mode needs no statistics. `AveragedModel` of torch keeps the
source's buffers, which often costs little: give batches, so that BN204 measures it.

## Example

    >>> import copy, torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    >>> average = copy.deepcopy(model).eval()
    >>> _ = model(torch.randn(64, 2))
    >>> with torch.no_grad():
    ...     _ = average[0].weight.mul_(0.5)
    >>> found = bnkit.diagnose(average, pair=model, relation="averaged").findings
    >>> "BN215" in [f.code for f in found]
    True

## Use instead

Average the floating point entries of `state_dict()`, copy the buffers at each step, or run
`recalibrate` on the copy before it is used.

## Fix safety

Unsafe: `recalibrate` on the copy.

## References

pytorch/ignite issue 2590; huggingface/pytorch-image-models issue 102; timgaripov/swa issue 7.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.naming import short_name
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule


@rule(
    "BN215",
    "averaged-weights-stale-stats",
    needs=("records", "pair"),
    starred=True,
    explains=("BN201", "BN204", "BN208"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Weights that differ over statistics that did not follow."""
    pair = evidence.pair
    if pair is None or pair.relation != "averaged" or pair.same_weights:
        return
    both = [
        (r, pair.records[short_name(r.name)])
        for r in evidence.with_statistics
        if short_name(r.name) in pair.records
    ]
    reset = [r.name for r, source in both if r.at_init and not source.at_init]
    copied = [r.name for r, source in both if not r.at_init and _equal(r, source)]
    if reset:
        yield Found(
            layers=tuple(reset),
            message="the weights differ from their source and the running statistics are at their "
            "initial values: only parameters were averaged.",
            severity=Severity.ERROR,
            fix=RECALIBRATE,
        )
    if both and len(copied) == len(both):
        yield Found(
            layers=tuple(copied),
            message="the weights differ from their source and the running statistics are bitwise "
            "the source's: they describe other weights.",
            fix=RECALIBRATE,
        )


def _equal(one: BatchNormRecord, other: BatchNormRecord) -> bool:
    pairs = ((one.running_mean, other.running_mean), (one.running_var, other.running_var))
    return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)

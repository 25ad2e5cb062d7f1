"""Ranks of one training with different running statistics.

## What it does

Compares two checkpoints of one training (`relation="rank"`): equal parameters, and buffers that
lie apart. Warning from d90 = 0.1 on, error from 0.5.

## Why is this bad?

Which rank writes the checkpoint decides the network.

## Known problems

By design where buffers are not broadcast; they should still be averaged before saving.

## Example

    >>> import copy, torch, bnkit
    >>> one = torch.nn.BatchNorm1d(3).eval()
    >>> one.running_mean += 0.2
    >>> other = copy.deepcopy(one)
    >>> other.running_mean += 1
    >>> bnkit.diagnose(one, pair=other, relation="rank").findings[0].code
    'BN214'

## Use instead

`bnkit.nn.SyncBatchNorm`, or an average of the buffers before evaluation.

## Fix safety

Safe: the average of buffers, weighted by their counts.

## References

pytorch/pytorch issue 30718.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.measured import distance
from bnkit.doctor.naming import short_name
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN214", "ranks-disagree", needs=("records", "pair"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Distances of the statistics under equal parameters."""
    pair = evidence.pair
    if pair is None or pair.relation != "rank" or not pair.same_weights:
        return
    apart = {}
    for one in evidence.with_statistics:
        other = pair.records.get(short_name(one.name))
        rows = (one.running_mean, one.running_var)
        if other is None or rows[0] is None or rows[1] is None:
            continue
        if other.running_mean is not None and other.running_var is not None:
            theirs = (other.running_mean, other.running_var)
            apart[one.name] = distance((rows[0], rows[1]), theirs, one.eps or 0.0).d90
    off = {name: d for name, d in apart.items() if d >= 0.1}
    if off:
        yield Found(
            layers=tuple(off),
            message=f"equal parameters, and running means up to {max(off.values()):.2g} standard "
            "deviations apart between the ranks.",
            severity=Severity.ERROR if max(off.values()) >= 0.5 else Severity.WARNING,
            numbers={"d90": max(off.values()), "threshold": 0.1},
            fix=manual("average the buffers over the ranks before saving"),
        )

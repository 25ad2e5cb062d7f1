"""Buffers of replicas that drift apart.

## What it does

Finds `DistributedDataParallel(broadcast_buffers=False)` around plain batch norms.

## Why is this bad?

Each rank gathers its own statistics, and the checkpoint holds those of one.

## Known problems

The buffers are averaged before evaluation: suppress with that reason.

## Example

    >>> from bnkit.doctor import all_rules
    >>> all_rules()["BN607"].purposes
    ('train', 'finetune')

## Use instead

`broadcast_buffers=True`, or SyncBatchNorm.

## Fix safety

Manual.

## References

pytorch/pytorch issue 30718.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN607", "buffers-not-broadcast", needs=("records", "model"), purposes=("train", "finetune"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Plain layers under a wrapper that does not broadcast."""
    facts = evidence.model
    if (
        facts is None
        or facts.parallel != "DistributedDataParallel"
        or facts.broadcasts is not False
    ):
        return
    names = tuple(r.name for r in evidence.records if r.kind != "SyncBatchNorm" and not r.fixed)
    if names:
        yield Found(
            layers=names,
            message="broadcast_buffers=False: every rank keeps running statistics of its own.",
            fix=manual("broadcast_buffers=True, SyncBatchNorm, or average before saving"),
        )

"""Buffers of replicas that drift apart.

## What it does

Finds `DistributedDataParallel(forward_sync_buffers=False)`, which before torch 2.13 was called
`broadcast_buffers`, around plain batch norms.

## Why is this bad?

Each rank gathers its own statistics, and the checkpoint holds those of one.

## Known problems

The buffers are averaged before evaluation: suppress with that reason.

## Example

    >>> import torch, bnkit
    >>> from torch import distributed, nn
    >>> distributed.init_process_group(
    ...     "gloo", store=distributed.HashStore(), rank=0, world_size=1
    ... )
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    >>> parallel = nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False)
    >>> [f.code for f in bnkit.diagnose(parallel, purpose="train").findings]
    ['BN607']
    >>> distributed.destroy_process_group()

## Use instead

`forward_sync_buffers=True`, or SyncBatchNorm.

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
            message="buffers are not synchronized: every rank keeps running statistics of its own.",
            fix=manual("forward_sync_buffers=True, SyncBatchNorm, or average before saving"),
        )

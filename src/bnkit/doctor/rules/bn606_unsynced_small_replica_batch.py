"""Replicas that normalize with few values each, without synchronization.

## What it does

Finds plain batch norms inside `DistributedDataParallel` or `DataParallel` where the batch of a
replica has fewer than 32 values per channel; and `SyncBatchNorm` inside `DataParallel`, where it
does nothing.

## Why is this bad?

Each replica normalizes with its own few values: the batch that counts is that of a replica.

## Known problems

The count is that of the batches given; without batches only the useless combination is reported.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> model = nn.DataParallel(nn.Sequential(nn.Linear(4, 3), nn.SyncBatchNorm(3)))
    >>> bnkit.diagnose(model, purpose="train").findings[0].code
    'BN606'

## Use instead

`bnkit.nn.convert_sync_batchnorm(model)` and `DistributedDataParallel`.

## Fix safety

Manual: training changes.

## References

pytorch/pytorch issues 2584, 13711; huggingface/pytorch-image-models issue 110.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

FEW = 32
_FIX = manual("bnkit.nn.convert_sync_batchnorm(model) under DistributedDataParallel")


@rule(
    "BN606",
    "unsynced-small-replica-batch",
    needs=("records", "model"),
    purposes=("train", "finetune"),
    starred=True,
    explains=("BN501", "BN610"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Small replica batches, and synchronization that cannot happen."""
    parallel = None if evidence.model is None else evidence.model.parallel
    if parallel is None:
        return
    live = [r for r in evidence.records if not r.fixed]
    if parallel == "DataParallel":
        useless = tuple(r.name for r in live if r.kind == "SyncBatchNorm")
        if useless:
            yield Found(
                layers=useless,
                message="SyncBatchNorm does not synchronize under DataParallel, which has no "
                "processes.",
                fix=_FIX,
            )
    plain = [r.name for r in live if r.kind != "SyncBatchNorm"]
    probed = {} if evidence.probe is None else evidence.probe.layers
    few = {n: probed[n].fewest_values for n in plain if n in probed}
    few = {n: count for n, count in few.items() if count < FEW}
    if few:
        yield Found(
            layers=tuple(few),
            message=f"each replica normalizes with {min(few.values())} values per channel of its "
            "own.",
            certainty="measured",
            numbers={"values_per_channel": min(few.values()), "threshold": FEW},
            fix=_FIX,
        )

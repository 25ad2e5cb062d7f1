"""`DataParallel` keeps the statistics of the first device alone.

## What it does

Finds plain batch norms with running statistics inside `torch.nn.DataParallel`.

## Why is this bad?

Each replica normalizes with its part of the batch, and only the buffers of the first one survive
the step: the running statistics see 1/k of the data.

## Known problems

With shuffled data that part is as good as the rest. BN606 says when it is too small.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> nn = torch.nn
    >>> model = nn.DataParallel(nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)))
    >>> every = Selection(level=Severity.INFO, select=("BN610",))
    >>> bnkit.diagnose(model, purpose="train", selection=every).findings[0].layers
    ('module.1',)

## Use instead

`DistributedDataParallel` with `bnkit.nn.convert_sync_batchnorm(model)`.

## Fix safety

Manual: training changes.

## References

The page of `torch.nn.DataParallel`: updates of buffers on other devices than the first are lost.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN610",
    "dataparallel-stats",
    needs=("records", "model"),
    purposes=("train", "finetune"),
    info=True,
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers that average, under DataParallel."""
    if evidence.model is None or evidence.model.parallel != "DataParallel":
        return
    names = tuple(r.name for r in evidence.with_statistics if r.tracks and not r.fixed)
    if names:
        yield Found(
            layers=names,
            message="under DataParallel the running statistics come from the first device alone.",
            severity=Severity.INFO,
            fix=manual("DistributedDataParallel with bnkit.nn.convert_sync_batchnorm(model)"),
        )

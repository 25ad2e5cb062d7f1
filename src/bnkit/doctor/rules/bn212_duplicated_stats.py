"""Two batch norms with the same statistics.

## What it does

Finds layers whose running mean and variance are bit by bit those of another layer, and not the
initial ones.

## Why is this bad?

A mapping of names gave one layer the numbers of another.

## Known problems

Tied layers and copies of one network within another.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)).eval()
    >>> for layer in model:
    ...     _ = layer.running_mean.fill_(0.3)
    >>> [f.code for f in bnkit.diagnose(model).findings if f.code[2] == "2"]
    ['BN212']

## Use instead

Check the mapping of names.

## Fix safety

Manual.

## References

docs/doctor.md.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN212", "duplicated-stats", purposes=("infer", "finetune", "export"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Groups of layers with equal rows."""
    groups: dict[bytes, list[str]] = {}
    for record in evidence.with_statistics:
        if not record.at_init and record.finite:
            rows = (np.asarray(record.running_mean), np.asarray(record.running_var))
            groups.setdefault(b"".join(r.tobytes() for r in rows), []).append(record.name)
    for names in groups.values():
        if len(names) > 1:
            yield Found(
                layers=tuple(names),
                message="bit by bit the same running statistics: one was copied from another.",
                fix=manual("check the mapping of names"),
            )

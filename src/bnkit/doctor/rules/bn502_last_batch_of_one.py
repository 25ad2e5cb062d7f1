"""A last batch of one sample.

## What it does

Divides the rows of the data set by the batch size. Error when one row is left and `drop_last` is
off, for training; warning when fewer than an eighth of a batch are left.

## Why is this bad?

torch raises "Expected more than 1 value per channel when training" at the end of the first epoch;
and a small rest weighs in the running statistics as much as a full batch.

## Known problems

Layers that see more than one position per sample do not raise; with batches the doctor knows, and
then only warns.

## Example

    >>> import torch, bnkit
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> loader = DataLoader(TensorDataset(torch.randn(129, 4)), batch_size=64)
    >>> [f.code for f in bnkit.diagnose(model, loader, purpose="train").errors]
    ['BN502']

## Use instead

`DataLoader(..., drop_last=True)` for training.

## Fix safety

Safe: fewer than one batch of samples is left out of an epoch, others each time.

## References

pytorch/pytorch issue 7716; fastai/fastai issue 1352.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Fix, Found, Severity
from bnkit.doctor.rule import rule

SMALL = 8


@rule(
    "BN502",
    "last-batch-of-one",
    needs=("records", "loader"),
    purposes=("train", "finetune"),
    starred=True,
)
def check(evidence: Evidence) -> Iterator[Found]:
    """A rest of one row, or of a small part of a batch."""
    loader = evidence.loader
    live = [r.name for r in evidence.records if not r.fixed and r.training is not False]
    if loader is None or loader.rest == 0 or not live or loader.samples < loader.batch_size:
        return
    fix = Fix("drop-last", "safe", "DataLoader(..., drop_last=True)")
    probed = {} if evidence.probe is None else evidence.probe.layers
    positions = {n: p.fewest_values // max(p.samples, 1) for n, p in probed.items()}
    alone = [n for n in live if positions.get(n, 1) <= 1]
    numbers = {"rows": loader.samples, "batch_size": loader.batch_size, "rest": loader.rest}
    if loader.rest == 1 and alone:
        yield Found(
            layers=tuple(alone),
            message=f"{loader.samples} rows in batches of {loader.batch_size} leave a last batch "
            "of one: torch raises in training.",
            severity=Severity.ERROR,
            numbers=numbers,
            fix=fix,
        )
    elif loader.rest < loader.batch_size / SMALL:
        yield Found(
            layers=tuple(live),
            message=f"the last batch has {loader.rest} of {loader.batch_size} rows and weighs in "
            "the running statistics as much as a full one.",
            numbers=numbers,
            fix=fix,
        )

"""The next batch would overwrite all that was gathered.

## What it does

Finds `momentum=None` with a count of 0 over statistics that have moved.

## Why is this bad?

The cumulative average weighs the new batch by 1/(count + 1): by 1.

## Known problems

None.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(3, momentum=None).eval()
    >>> layer.running_mean += 1
    >>> bnkit.diagnose(layer, purpose="finetune").findings[0].code
    'BN217'

## Use instead

Load `num_batches_tracked` with the statistics.

## Fix safety

Safe: set the count.

## References

torch.nn.modules.batchnorm, `_BatchNorm.forward`.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN217", "cumulative-momentum-with-zero-count", purposes=("train", "finetune"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Cumulative layers with statistics and without a count."""
    names = tuple(
        r.name
        for r in evidence.with_statistics
        if r.knows_hyperparameters and r.ema_weight is None and not r.at_init and r.batches == 0
    )
    if names:
        yield Found(
            layers=names,
            message="momentum=None with num_batches_tracked=0: the next batch replaces the running "
            "statistics altogether.",
            fix=manual("set num_batches_tracked to the number of batches gathered"),
        )

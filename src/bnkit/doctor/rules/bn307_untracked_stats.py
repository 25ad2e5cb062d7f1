"""A layer without running statistics in a network for inference.

## What it does

Finds batch norms with `track_running_stats=False`, or whose buffers are None, when the purpose is
inference or export. An error for export, and where the batches given have one sample.

## Why is this bad?

Eval mode then normalizes with the batch as well. Measured on digits: 0.996 at 64 requests in a
batch, 0.698 at one. `torch.export` writes the training operator.

## Known problems

MAML and style transfer do so by design.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(3, track_running_stats=False).eval()
    >>> bnkit.diagnose(model).findings[0].code
    'BN307'

## Use instead

`track_running_stats=True`.

## Fix safety

Unsafe: track, then recalibrate.

## References

pytorch/pytorch issue 52867.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN307", "untracked-stats", needs=("records", "model"), purposes=("infer", "export"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers of a module that have nothing to normalize with but the batch."""
    names = tuple(r.name for r in evidence.records if not r.has_statistics and r.num_features)
    if not names:
        return
    alone = evidence.probe is not None and evidence.probe.batch_size == 1
    severe = alone or evidence.purpose == "export"
    yield Found(
        layers=names,
        message="no running statistics: eval mode normalizes with the batch as well.",
        severity=Severity.ERROR if severe else Severity.WARNING,
        fix=manual("track_running_stats=True, then recalibrate"),
    )

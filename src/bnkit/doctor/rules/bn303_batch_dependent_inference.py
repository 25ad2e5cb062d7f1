"""In eval mode, one sample changes the results of the others.

## What it does

Runs one batch in eval mode twice, the second time with the last sample replaced by noise. Error
when another sample's result moves by more than 1e-4 of the size of the results.

## Why is this bad?

The result of a request depends on which others share its batch. The causes:
`track_running_stats=False`, `F.batch_norm(..., training=True)`, a layer of one's own that ignores
`eval()`.

## Known problems

Heads that compare samples within a batch, graphs in one batch, and models that pad to the longest
sample do so by design.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(3, track_running_stats=False).eval()
    >>> bnkit.diagnose(model, torch.randn(64, 3)).findings[0].code
    'BN303'

## Use instead

Running statistics, and `training=self.training` in every call of `F.batch_norm`.

## Fix safety

By cause: see BN307 and BN309.

## References

docs/doctor.md; the idea of a metamorphic test of batch independence is also in torchtest2.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

RELATIVE = 1e-4


@rule(
    "BN303",
    "batch-dependent-inference",
    needs=("behaviour",),
    purposes=("infer", "finetune", "export"),
    starred=True,
    explains=("BN307",),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """A leak between samples, with the layers that can cause it."""
    seen = evidence.behaviour
    if seen is None or seen.leak is None or seen.leak <= RELATIVE:
        return
    untracked = tuple(r.name for r in evidence.records if not r.has_statistics)
    why = "these layers keep no running statistics" if untracked else "no layer admits to it"
    hint = "" if untracked else ": look for F.batch_norm(training=True) or a mode that is fixed"
    yield Found(
        layers=untracked,
        message=f"in eval mode, replacing one sample moves the results of the others by "
        f"{seen.leak:.2g} of their size; {why}{hint}.",
        severity=Severity.ERROR,
        certainty="measured",
        cause="untracked-statistics" if untracked else None,
        numbers={"relative_change": seen.leak, "threshold": RELATIVE},
        fix=manual("track running statistics and recalibrate, or pass training=self.training"),
    )

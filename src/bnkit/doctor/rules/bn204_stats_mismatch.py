"""Stored statistics do not describe the data that flows in.

## What it does

Feeds batches through a copy in which every batch norm normalizes with its batch, and compares what
each one sees with what it has stored:
`d = |running_mean - mu| / sqrt(var + eps)` and `r = log2((running_var + eps) / (var + eps))`.
Error: the 90th percentile over channels of d is at least 0.5, or that of |r| at least 1. Warning:
0.25 and 0.4.

## Why is this bad?

Eval mode then computes another function than the one that was trained. Known patterns are named:
dummy forwards of zeros in train mode, standard deviations stored as variances, an average that has
not converged, one layer corrupted, statistics of other data.

## Known problems

Batches that are not from the training distribution look the same. Frozen layers on a new domain are
meant (a remark when fine-tuning). The thresholds were found on small networks on digits.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)).eval()
    >>> model[1].running_mean += 1.0
    >>> _ = model[0].running_mean.add_(0.01)
    >>> [f.layers for f in bnkit.diagnose(model, torch.randn(640, 3)).errors if f.code == "BN204"]
    [('1',)]

## Use instead

Nothing between the last training step and the saving of the network should run in train mode.

## Fix safety

Unsafe: `recalibrate` with batches of the training set; keep the result only when the metric
improves and the cause is known. It also hides a wrong preprocessing.

## References

Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm"; thresholds: docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.measured import LayerProbe, Probe
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule
from bnkit.doctor.signatures import dummy_forwards, initial_share, standard_deviations


@rule(
    "BN204",
    "stats-mismatch",
    needs=("records", "probe"),
    purposes=("infer", "finetune", "export"),
    starred=True,
    explains=("BN203",),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Any layer beyond the thresholds, with the cause where a pattern names it."""
    probe = evidence.probe
    if probe is None or not probe.mismatched:
        return
    off = probe.mismatched
    worst = max(off, key=_badness)
    frozen = evidence.purpose == "finetune" and all(evidence.by_name[p.name].fixed for p in off)
    severe = any(p.verdict == "error" for p in off)
    severity = Severity.ERROR if severe else Severity.WARNING
    if frozen:
        severity = Severity.INFO
    cause, text = _named(probe, evidence, off)
    stored = worst.stored
    yield Found(
        layers=tuple(p.name for p in off),
        message=f"the running statistics do not describe these batches: {text}",
        severity=severity,
        certainty="measured",
        cause=cause,
        numbers={} if stored is None else {"d90": stored.d90, "r90": stored.r90, "r50": stored.r50},
        fix=RECALIBRATE,
    )


def _badness(one: LayerProbe) -> float:
    return 0.0 if one.stored is None else max(one.stored.d90, one.stored.r90 / 2)


def _named(probe: Probe, evidence: Evidence, off: list[LayerProbe]) -> tuple[str, str]:
    records = evidence.by_name
    zeros = dummy_forwards(probe, records)
    if zeros is not None:
        return (
            "dummy-forwards",
            f"mean and variance shrank alike, as about {zeros[0]} forwards of zeros in train mode "
            "leave them (a shape probe, a warm-up, a summary).",
        )
    if standard_deviations(probe, records):
        return (
            "std-stored-as-variance",
            "their squares do: standard deviations were stored as variances.",
        )
    share = initial_share(probe, records)
    if share is not None:
        return (
            "ema-not-converged",
            f"{share:.0%} of the initial values is left in every layer: the average has not "
            "converged.",
        )
    if len(off) == 1 and len(probe.layers) > 1:
        return (
            "one-layer",
            f"only {off[0].name!r} is off, and the layers behind it are not: its statistics were "
            "damaged or belong to another layer.",
        )
    return (
        "other-data",
        "they were gathered on other data or other weights: forwards in train mode on random or "
        "shifted input, weights averaged or changed afterwards, or these batches are prepared "
        "otherwise than those of training.",
    )

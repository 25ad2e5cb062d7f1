"""Channels that a batch norm has switched off.

## What it does

Counts channels whose |weight| is below 1e-3 of the layer's median, or below 1e-4: a warning above
a tenth of a layer, an error above half. Before a relu it also counts channels with
`bias / |weight| < -3.1`, which are positive for fewer than one value in a thousand: a warning above
a fifth.

## Why is this bad?

The channel is constant: capacity is lost, and its gradient is gone as well. Measured on digits: 40
of 64 dead channels leave accuracy 0.920 instead of 0.996.

## Known problems

Pruning makes them on purpose. A layer whose weights are all zero is BN402's.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(8).eval()
    >>> layer.running_mean += 0.1
    >>> with torch.no_grad():
    ...     layer.weight[:5] = 0
    >>> [f.code for f in bnkit.diagnose(layer).findings]
    ['BN401']

## Use instead

Less weight decay on the weights of batch norm, a smaller learning rate, or a smaller layer.

## Fix safety

Safe: cutting the channels out and adding their constant to the next layer keeps the function.

## References

Frankle, Schwab & Morcos 2021, "Training BatchNorm and Only BatchNorm"; Goyal et al. 2017, section
5.1.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

RELATIVE, ABSOLUTE = 1e-3, 1e-4
WARNING, ERROR = 0.1, 0.5
BELOW, CUT = -3.1, 0.2


@rule("BN401", "dead-channels", purposes=("infer", "finetune", "export"), starred=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Shares of dead channels beyond the lines, then of channels that a relu cuts off."""
    shares = {r.name: _dead(r) for r in evidence.records}
    dead = {name: share for name, share in shares.items() if share > WARNING}
    fix = manual("prune the channels and fold their constants, or train with less weight decay")
    if dead:
        worst = max(dead.values())
        yield Found(
            layers=tuple(dead),
            message=f"up to {worst:.0%} of the channels of a layer have a weight of nothing: they "
            "are constant.",
            severity=Severity.ERROR if worst > ERROR else Severity.WARNING,
            numbers={"dead_share": worst, "threshold": WARNING},
            fix=fix,
        )
    cut = {r.name: _cut(r) for r in evidence.records if _before_relu(evidence, r)}
    cut = {name: share for name, share in cut.items() if share > CUT and name not in dead}
    if cut:
        yield Found(
            layers=tuple(cut),
            message=f"up to {max(cut.values()):.0%} of the channels are below 0 for all but one "
            "value in a thousand, and a relu follows.",
            numbers={"cut_share": max(cut.values()), "threshold": CUT},
            fix=fix,
        )


def _dead(record: BatchNormRecord) -> float:
    if record.weight is None or not record.weight.any():
        return 0.0
    size = np.abs(record.weight)
    alive = size[size >= ABSOLUTE]
    scale = float(np.median(alive)) if alive.size else 0.0
    return float(np.mean((size < RELATIVE * scale) | (size < ABSOLUTE)))


def _cut(record: BatchNormRecord) -> float:
    if record.weight is None or record.bias is None:
        return 0.0
    size = np.abs(record.weight)
    return float(np.mean(record.bias < BELOW * np.maximum(size, ABSOLUTE)))


def _before_relu(evidence: Evidence, record: BatchNormRecord) -> bool:
    if evidence.flow is None:
        return False
    nodes = [n for n in evidence.flow.batch_norms() if n.layer == record.name]
    after = [a for n in nodes for a in evidence.flow.after(n)]
    return bool(after) and all(a.op.lower().strip("_") == "relu" for a in after)

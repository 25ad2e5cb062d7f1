"""The input is prepared otherwise than in training.

## What it does

Finds networks in which the first batch norm alone does not fit the data, in one and the same factor
of the variance for all its channels, or in one and the same shift: later layers cannot see it,
because the first one, normalizing with its batch, removes it.

## Why is this bad?

Measured on digits: pixels from 0 to 16 instead of standardized ones leave 0.372 instead of 0.996.
Recalibration "repairs" that and hides the bug, until the service that prepares its input correctly
fails.

## Known problems

Damaged statistics of the first layer look alike; those differ from channel to channel and are
reported by BN204. Input of another contrast has the same effect, and may be meant.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> model = nn.Sequential(
    ...     nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 8),
    ...     nn.BatchNorm1d(8, momentum=None)
    ... )
    >>> for _ in range(20):
    ...     _ = model(torch.randn(64, 4))
    >>> found = bnkit.diagnose(model.eval(), 8 * torch.randn(640, 4)).findings[0]
    >>> found.code, round(found.found.numbers["scale"])
    ('BN505', 8)

## Use instead

The same preprocessing function in training and in serving.

## Fix safety

None: fix the preprocessing; never recalibrate silently.

## References

Measured table of docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule
from bnkit.doctor.signatures import only_first

CONSISTENT, FACTOR = 0.8, 0.7
FAR_MEAN, FAR_SD = 0.5, 2.0


@rule(
    "BN505",
    "input-shift",
    needs=("records", "probe"),
    purposes=("infer", "finetune", "export"),
    starred=True,
    explains=("BN204", "BN210"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Only the first layer off, in a way that the input explains."""
    probe = evidence.probe
    if probe is None:
        return
    first = only_first(probe)
    if first is None or first.stored is None:
        return
    stored, mean, sd = first.stored, probe.input_mean or 0.0, probe.input_sd or 1.0
    scaled = stored.spread < CONSISTENT and abs(stored.r50) >= FACTOR
    unusual = abs(mean) > FAR_MEAN * sd or not 1 / FAR_SD < sd < FAR_SD
    shifted = stored.spread < CONSISTENT and stored.d90 >= 0.5 and unusual
    if not (scaled or shifted):
        return
    scale = 2.0 ** (-stored.r50 / 2)
    yield Found(
        layers=(first.name,),
        message=f"only the first batch norm is off, and in all channels alike: the input is about "
        f"{scale:.3g} times as large as in training (now mean {mean:.3g}, standard deviation "
        f"{sd:.3g}). Fix the preprocessing; recalibration would hide it.",
        severity=Severity.ERROR,
        certainty="measured",
        cause="input-scale" if scaled else "input-offset",
        numbers={"scale": scale, "d90": stored.d90, "r50": stored.r50, "input_sd": sd},
        fix=manual("prepare the input as in training"),
    )

"""Dropout in front of a batch norm: its variance in training is not that of inference.

## What it does

Finds active dropout (p > 0) whose result reaches a batch norm without a sum over many units
between them. With batches it measures the variance of the input with dropout on over that with
dropout off: above 1.2 it warns, from 2 on it is an error.

## Why is this bad?

Dropout keeps the mean and raises the variance by up to `1/(1-p)`. The running variance learns the
raised one, and inference has the other. Measured on digits at p = 0.5: 2.3 times too large.

## Known problems

Wide layers average the difference away, as in wide residual networks. Dropout before a global
average has little effect. None of 807 published networks has it in its default configuration.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
    >>> bnkit.diagnose(model, purpose="train").findings[0].code
    'BN102'

## Use instead

Put dropout behind the last batch norm.

## Fix safety

Unsafe: moving it changes the network; recalibration with dropout off repairs inference alone
(measured: 0.984 to 0.996).

## References

Li, Chen, Hu & Yang 2019, "Understanding the Disharmony between Dropout and Batch Normalization by
Variance Shift", section 3.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule

WARNING, ERROR = 1.2, 2.0
_AVERAGES = ("pool", "attention", "norm", "batch_norm")


@rule(
    "BN102",
    "dropout-before-bn",
    needs=("records", "flow"),
    starred=True,
    explains=("BN204", "BN210", "BN505"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Dropout upstream of a batch norm, with nothing between that averages."""
    flow = evidence.flow
    if flow is None:
        return
    behind: dict[str, str] = {}
    for node in flow.batch_norms():
        for source in flow.upstream(node, stop=_AVERAGES):
            p = source.options.get("p", source.options.get("drop_prob", 0.0))
            element = not source.op.lower().startswith(("droppath", "drop_path", "stochastic"))
            if (
                source.kind == "dropout"
                and p > 0
                and element
                and not source.options.get("inactive")
            ):
                behind[node.layer] = source.layer or source.op
    if not behind:
        return
    ratios = {} if evidence.probe is None else evidence.probe.dropout_ratio
    measured = {name: ratios[name] for name in behind if name in ratios}
    if measured:
        yield from _measured(measured, behind)
        return
    yield Found(
        layers=tuple(behind),
        message=f"dropout ({', '.join(dict.fromkeys(behind.values()))}) reaches these batch norms: "
        "their variance in training is not that of inference.",
        certainty="suspected",
        fix=RECALIBRATE,
    )


def _measured(measured: dict[str, float], behind: dict[str, str]) -> Iterator[Found]:
    off = {name: ratio for name, ratio in measured.items() if ratio > WARNING}
    if not off:
        return
    worst = max(off.values())
    yield Found(
        layers=tuple(off),
        message=f"dropout ({', '.join(dict.fromkeys(behind[n] for n in off))}) makes their input "
        f"vary {worst:.2g} times as much in training as in inference.",
        severity=Severity.ERROR if worst >= ERROR else Severity.WARNING,
        certainty="measured",
        numbers={"variance_ratio": worst, "threshold": WARNING},
        fix=RECALIBRATE,
    )

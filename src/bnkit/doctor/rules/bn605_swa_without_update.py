"""Averaged weights were not given statistics of their own.

## What it does

With batches: finds an `AveragedModel` of torch that averages at least two models and whose running
statistics are beyond the thresholds of BN204; the severity is that of BN204.

## Why is this bad?

The buffers are those of the last model that was averaged in. They describe the activations of its
weights, not of the average.

## Known problems

Often the average is close enough to its last model: then nothing is reported (measured on digits:
0.996 and 0.996). Data of another distribution look the same.

## Example

    >>> import torch, bnkit
    >>> from torch.optim.swa_utils import AveragedModel
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8))
    >>> average = AveragedModel(model)
    >>> for scale in (1.0, 3.0, -3.0):
    ...     _ = torch.nn.init.normal_(model[0].weight, std=abs(scale))
    ...     _ = model(torch.randn(512, 4))
    ...     average.update_parameters(model)
    >>> bnkit.diagnose(average.eval(), torch.randn(640, 4)).findings[0].code
    'BN605'

## Use instead

`torch.optim.swa_utils.update_bn(loader, average)`, or `bnkit.recalibrate_(average, loader)`.

## Fix safety

Unsafe: `recalibrate`, with batches of the training set.

## References

Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima", section 3.2;
timgaripov/swa issue 7.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule

FEWEST = 2


@rule(
    "BN605",
    "swa-without-update",
    needs=("records", "model", "probe"),
    purposes=("infer", "finetune", "export"),
    explains=("BN201", "BN204", "BN205", "BN215"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """An average whose statistics do not fit."""
    facts, probe = evidence.model, evidence.probe
    if facts is None or probe is None or not facts.averaged or facts.averaged_steps < FEWEST:
        return
    off = probe.mismatched
    if off:
        severe = any(one.verdict == "error" for one in off)
        far = [one.stored for one in off if one.stored is not None]
        yield Found(
            layers=tuple(one.name for one in off),
            message=f"the weights average {facts.averaged_steps} models, and the running "
            "statistics do not fit them: they were not estimated again.",
            severity=Severity.ERROR if severe else Severity.WARNING,
            certainty="measured",
            numbers={
                "models": facts.averaged_steps,
                "d90": max(d.d90 for d in far),
                "r90": max(d.r90 for d in far),
            },
            fix=RECALIBRATE,
        )

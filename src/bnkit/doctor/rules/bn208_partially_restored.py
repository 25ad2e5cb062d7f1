"""Some batch norms at their initial statistics, and others not.

## What it does

Finds layers with running mean 0 and variance 1 in a network in which other layers have moved.

## Why is this bad?

A checkpoint was restored in part, or with another prefix: `strict=False` says nothing.

## Known problems

Unused branches and auxiliary heads; with batches, layers that no batch reaches are left out.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(4)).eval()
    >>> model[0].running_mean += 0.3
    >>> [f.code for f in bnkit.diagnose(model).errors]
    ['BN208']

## Use instead

`load_state_dict(strict=True)`, and look at what it returns.

## Fix safety

Unsafe: `recalibrate`, or load the checkpoint again.

## References

tensorflow/tensorflow issue 1122.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule


@rule(
    "BN208",
    "partially-restored",
    purposes=("infer", "finetune", "export"),
    explains=("BN204", "BN505"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """A proper subset at init, of the layers that are used."""
    silent = () if evidence.probe is None else evidence.probe.silent
    layers = [r for r in evidence.with_statistics if not r.fixed and r.name not in silent]
    reset = [r.name for r in layers if r.at_init]
    if reset and len(reset) < len(layers):
        yield Found(
            layers=tuple(reset),
            message=f"{len(reset)} of {len(layers)} layers have running_mean exactly 0 and "
            "running_var exactly 1, the others do not: a part was not restored.",
            severity=Severity.ERROR,
            numbers={"reset": len(reset), "layers": len(layers)},
            fix=RECALIBRATE,
        )

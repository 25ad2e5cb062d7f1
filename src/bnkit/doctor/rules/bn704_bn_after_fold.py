"""A batch norm that was folded into the layer before it, and left in the network.

## What it does

With batches: in at least four fifths of the channels the input already has mean `bias` and standard
deviation `|weight|` of that same batch norm, within 15 % of a standard deviation and 20 % of the
variance.

## Why is this bad?

The layer is applied twice. Measured on digits: 0.928 instead of 0.996 for one layer.

## Known problems

A layer whose weight is 1 and bias 0 folds to the same numbers and is not reported.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.BatchNorm1d(8)).eval()
    >>> with torch.no_grad():
    ...     for layer in model:
    ...         _ = layer.weight.copy_(torch.linspace(0.5, 2, 8))
    ...         _ = layer.bias.copy_(torch.linspace(-1, 1, 8))
    >>> model[1].running_mean += 0.3; model[0].running_mean += 0.01
    >>> [f.layers for f in bnkit.diagnose(model, torch.randn(640, 8)).errors if f.code == "BN704"]
    [('1',)]

## Use instead

Replace the layer by `torch.nn.Identity()` when it is folded.

## Fix safety

Safe: `Identity` in its place.

## References

Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Fix, Found, Severity
from bnkit.doctor.rule import rule
from bnkit.doctor.signatures import after_fold

SHARE = 0.8


@rule(
    "BN704",
    "bn-after-fold",
    needs=("records", "probe"),
    purposes=("infer", "finetune", "export"),
    starred=True,
    explains=("BN204", "BN505", "BN210", "BN211", "BN105"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers whose input is already their own output."""
    if evidence.probe is None:
        return
    shares = {
        p.name: after_fold(evidence.by_name[p.name], p)
        for p in evidence.probe.in_order
        if p.verdict != "ok"
    }
    folded = {name: share for name, share in shares.items() if share >= SHARE}
    if folded:
        yield Found(
            layers=tuple(folded),
            message="the input already has the mean and deviation that this layer would give it: "
            "it was folded into the layer before, and left in place.",
            severity=Severity.ERROR,
            certainty="measured",
            numbers={"share_of_channels": min(folded.values()), "threshold": SHARE},
            fix=Fix("identity", "safe", "bnkit fix replaces it by torch.nn.Identity()"),
        )

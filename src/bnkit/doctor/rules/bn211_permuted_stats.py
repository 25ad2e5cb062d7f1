"""Running statistics in another order than the channels.

## What it does

With batches: sorted by size, stored and measured statistics agree; channel by channel they differ
as far as BN204 calls an error.

## Why is this bad?

A mapping of weights, or pruning, permuted the channels of the layer and not its buffers. Measured
on digits: 0.924 instead of 0.996.

## Known problems

Layers of fewer than 8 channels are not judged.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(16), torch.nn.BatchNorm1d(16)).eval()
    >>> x = torch.randn(640, 16) * torch.logspace(-1, 1, 16) + torch.linspace(-5, 5, 16)
    >>> model[0].running_mean = x.mean(0).flip(0); model[0].running_var = x.var(0).flip(0)
    >>> found = bnkit.diagnose(model, x).findings[0]
    >>> found.code, found.layers
    ('BN211', ('0',))

## Use instead

Apply the permutation to weight, bias, running_mean and running_var alike.

## Fix safety

Unsafe: `recalibrate` finds the statistics; weight and bias may be permuted as well.

## References

Measured table of docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule
from bnkit.doctor.signatures import permuted


@rule(
    "BN211",
    "permuted-stats",
    needs=("records", "probe"),
    purposes=("infer", "finetune", "export"),
    explains=("BN204", "BN505"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers whose statistics fit after sorting and not before."""
    if evidence.probe is None:
        return
    names = tuple(p.name for p in evidence.probe.in_order if permuted(evidence.by_name[p.name], p))
    if names:
        yield Found(
            layers=names,
            message="sorted by size the running statistics fit the data, channel by channel "
            "they do not: they are in another order.",
            severity=Severity.ERROR,
            certainty="measured",
            fix=RECALIBRATE,
        )

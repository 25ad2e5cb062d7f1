"""A network that was trained with its batch norms in eval mode.

## What it does

Statistics at their initial values, weights that are trained, and an accuracy in eval mode that is
not below that with batch statistics.

## Why is this bad?

The network has learned around a batch norm that did nothing. It needs labels to see: recalibrating
such a network makes it worse. Measured on digits: 0.970 becomes 0.902.

## Known problems

Small networks where it is meant.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> x = torch.randn(256, 4); y = (x[:, 0] > 1).long()
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     nn.functional.cross_entropy(model(x), y).backward()
    ...     optimizer.step()
    >>> bnkit.diagnose(model, (x, y)).findings[0].code
    'BN308'

## Use instead

`model.train()` before the training loop; or no batch norm at all.

## Fix safety

None: never recalibrate. Train again, or remove the layers, which in eval mode only scale and shift.

## References

Measured table of docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN308",
    "trained-in-eval",
    needs=("records", "probe"),
    purposes=("infer", "finetune", "export"),
    starred=True,
    explains=("BN201", "BN204", "BN205", "BN210", "BN505"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """First statistics, trained weights, and eval mode no worse than batch statistics."""
    impact = None if evidence.probe is None else evidence.probe.impact
    layers = [r for r in evidence.with_statistics if not r.fixed]
    if impact is None or impact.metric != "accuracy" or not layers:
        return
    untouched = all(r.at_init for r in layers) and not all(r.affine_at_init for r in layers)
    if untouched and impact.before >= impact.after:
        yield Found(
            layers=tuple(r.name for r in layers),
            message=f"the statistics were never gathered, and eval mode ({impact.before:.3f}) is "
            f"no worse than batch statistics ({impact.after:.3f}): it was trained in eval mode. "
            "Recalibration would make it worse.",
            severity=Severity.ERROR,
            certainty="measured",
            numbers={"eval": impact.before, "batch": impact.after},
            fix=manual("train again in train mode, or declare the layers frozen"),
        )

"""A forward pass in eval mode that changes buffers of a batch norm.

## What it does

Runs one batch in eval mode without gradients and compares every buffer before and after.

## Why is this bad?

Validation then trains: the statistics drift towards the validation data, and two evaluations
differ. The cause is a forward that calls `train()`, or a layer that updates whatever the mode.

## Known problems

Deliberate recalibration and counters of one's own. Buffers of other layers are left to their
authors.

## Example

    >>> import torch, bnkit
    >>> class Stubborn(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.bn = torch.nn.BatchNorm1d(3)
    ...     def forward(self, x):
    ...         return self.bn.train()(x)
    >>> found = bnkit.diagnose(Stubborn().eval(), torch.randn(64, 3)).findings
    >>> "BN304" in [f.code for f in found]
    True

## Use instead

`model.eval()` once outside, and no `train()` inside of `forward`.

## Fix safety

Manual: the code of the model sets the mode.

## References

pytorch/pytorch issue 5406.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN304",
    "eval-changes-state",
    needs=("behaviour",),
    purposes=("infer", "finetune", "export"),
    starred=True,
    explains=("BN303", "BN204"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Buffers of batch norms that moved."""
    seen = evidence.behaviour
    if seen is None or not seen.moved_batch_norms:
        return
    yield Found(
        layers=seen.moved_batch_norms,
        message=f"a forward pass in eval mode changed {len(seen.moved)} buffers: the forward sets "
        "the mode itself, or the layer ignores it.",
        severity=Severity.ERROR,
        certainty="measured",
        numbers={"buffers": len(seen.moved)},
        fix=manual("call eval() once outside, and never train() inside of forward"),
    )

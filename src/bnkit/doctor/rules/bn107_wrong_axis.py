"""A batch norm that normalizes time steps instead of features.

## What it does

Looks at inputs of rank 3, which torch reads as (batch, channels, length). Error when the layer
before it works on the last axis (linear, embedding, layer norm, attention), so that features are
last, and the size of axis 1 is a length that only happens to equal `num_features`.

## Why is this bad?

`BatchNorm1d(16)` takes (batch, 16 steps, 16 features) without a word and normalizes each time step
over the features. Another length raises an error, in production.

## Known problems

Networks that transpose before the batch norm are right, and are not reported: the layer before it
is then the transposition. 1x1 convolutions work on axis 1.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16))
    >>> bnkit.diagnose(model, torch.randn(32, 16, 8), purpose="train").findings[0].code
    'BN107'

## Use instead

`bnkit.nn.BatchNorm(16, axis=-1)`, or `x.transpose(1, 2)` around the layer.

## Fix safety

Manual: the network has to be trained again.

## References

pytorch/pytorch issues 7577, 71366.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.flow import Flow, Node
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

_FEATURES_LAST = {"linear", "embedding", "norm", "attention"}


@rule("BN107", "wrong-axis", needs=("records", "flow"), starred=True, explains=("BN501", "BN504"))
def check(evidence: Evidence) -> Iterator[Found]:
    """A batch norm over axis 1 of (batch, length, features)."""
    flow = evidence.flow
    if flow is None:
        return
    wrong = [n for n in flow.batch_norms() if _features_last(flow, n) and _over_axis_1(evidence, n)]
    if wrong:
        shape: tuple[int, ...] = wrong[0].shape or (0, 0, 0)
        yield Found(
            layers=tuple(dict.fromkeys(n.layer for n in wrong)),
            message=f"the input {shape} has its features last, and batch norm takes axis 1 for the "
            "channels: it normalizes each step of the sequence over the features.",
            severity=Severity.ERROR,
            certainty="measured",
            numbers={"channels_taken": shape[1], "features": shape[2]},
            fix=manual("use bnkit.nn.BatchNorm(features, axis=-1), or transpose around the layer"),
        )


def _features_last(flow: Flow, node: Node) -> bool:
    shape = node.shape
    if shape is None or len(shape) != 3:
        return False
    before = flow.before(node, skip=("view", "activation", "dropout", "add", "gate"))
    if before is None or before.kind not in _FEATURES_LAST or "group" in before.op.lower():
        return False
    width = before.options.get("out_features")
    return width is None or int(width) == shape[2]


def _over_axis_1(evidence: Evidence, node: Node) -> bool:
    record = evidence.by_name.get(node.layer)
    return record is not None and record.channel_axis == 1

"""Batch norm on the tokens of a transformer.

## What it does

Finds batch norms over (batch, channels, tokens), one-dimensional ones, with an attention between
them and the batch norm before or behind them.

## Why is this bad?

Tokens of one sequence, and padding with them, enter the statistics together; the variance between
batches is large, and the gap to inference with it. Layer normalization does without.

## Known problems

Vision hybrids (LeViT) do so on purpose, on images of one size without padding. Two-dimensional
batch norms of convolutional stems are not reported.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    ...         self.bn = torch.nn.BatchNorm1d(8)
    ...     def forward(self, x):
    ...         x = x + self.attention(x, x, x)[0]
    ...         return self.bn(x.transpose(1, 2)).transpose(1, 2)
    >>> every = Selection(level=Severity.INFO, select=("BN115",))
    >>> data = torch.randn(8, 5, 8)
    >>> [f.layers for f in bnkit.diagnose(Block(), data, "train", selection=every).findings]
    [('bn',)]

## Use instead

Layer normalization, or `bnkit.nn.MaskedBatchNorm1d` with the padding mask.

## Fix safety

Manual: the architecture changes.

## References

Shen et al. 2020, "PowerNorm: Rethinking Batch Normalization in Transformers".
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.flow import Flow, Node
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum")


@rule("BN115", "bn-in-transformer", needs=("records", "flow"), info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """One-dimensional batch norms next to an attention."""
    flow = evidence.flow
    if flow is None:
        return
    names = [
        node.layer
        for node in flow.batch_norms()
        if _of_tokens(evidence, node) and _near_attention(flow, node)
    ]
    if names:
        yield Found(
            layers=tuple(dict.fromkeys(names)),
            message="it normalizes the tokens of an attention block over the batch.",
            severity=Severity.INFO,
            certainty="suspected",
            fix=manual("layer normalization, or bnkit.nn.MaskedBatchNorm1d with the padding mask"),
        )


def _of_tokens(evidence: Evidence, node: Node) -> bool:
    if node.shape is not None:
        return len(node.shape) == 3
    record = evidence.by_name.get(node.layer)
    return record is not None and record.kind.endswith("1d")


def _near_attention(flow: Flow, node: Node) -> bool:
    """An attention up to the next batch norm, on either side."""
    near = list(flow.upstream(node, stop=("batch_norm",)))
    seen, waiting = {n.id for n in near}, list(flow.consumers(node))
    while waiting:
        one = waiting.pop()
        if one.id not in seen:
            seen.add(one.id)
            near.append(one)
            waiting += [] if one.kind == "batch_norm" else flow.consumers(one)
    return _attends(near)


def _attends(near: list[Node]) -> bool:
    """A fused attention; or a softmax among products of tensors."""
    ops = [n.op.lower().strip("_") for n in near if n.kind == "attention"]
    if any(not op.removeprefix("aten.").startswith(_PRODUCTS) for op in ops):
        return True
    return len(ops) > 1 and any("softmax" in n.op.lower() for n in near)

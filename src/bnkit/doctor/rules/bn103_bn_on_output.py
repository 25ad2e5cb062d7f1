"""A batch norm whose result is the result of the network.

## What it does

Finds batch norms whose result the network returns, maybe reshaped.

## Why is this bad?

Logits are forced to mean bias and deviation weight over the batch: one class's score depends on
the others. None of 807 published classifiers does it.

## Known problems

Embeddings and projection heads (self-supervised learning, ArcFace) end in a batch norm on purpose,
so that this is a remark.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), torch.nn.BatchNorm1d(3))
    >>> every = Selection(level=Severity.INFO)
    >>> [f.code for f in bnkit.diagnose(model, purpose="train", selection=every).findings]
    ['BN103']

## Use instead

End a classifier with a linear layer.

## Fix safety

Manual.

## References

Census of docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN103", "bn-on-output", needs=("records", "flow"), info=True)
def check(evidence: Evidence) -> Iterator[Found]:
    """Results of batch norms among the results of the network."""
    flow = evidence.flow
    if flow is None:
        return
    names = [n.layer for n in flow.batch_norms() if n.layer and flow.is_output(n)]
    if names:
        yield Found(
            layers=tuple(dict.fromkeys(names)),
            message="its result is the result of the network.",
            severity=Severity.INFO,
            fix=manual("end with a linear layer, unless this is an embedding"),
        )

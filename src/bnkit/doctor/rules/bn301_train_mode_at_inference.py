"""A network that is meant for inference, in training mode.

## What it does

Finds batch norms in training mode when the declared purpose is inference or export.

## Why is this bad?

Every result then depends on the other samples of its batch, and every call changes the running
statistics. Measured on digits, accuracy by size of the serving batch: 0.698 (1), 0.910 (2), 0.958
(4), 0.990 (8), 0.996 (64); requests sorted by class, 8 at a time: 0.472.

## Known problems

pix2pix, MAML and TENT normalize with the batch at inference by design: suppress with that reason.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(3)
    >>> [f.code for f in bnkit.diagnose(model, purpose="export").errors]
    ['BN301']

## Use instead

`model.eval()` before inference, after every epoch's training and in every worker.

## Fix safety

Safe: `eval()` changes no state.

## References

pytorch/pytorch issues 5406, 4741.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import EVAL
from bnkit.doctor.rule import rule


@rule(
    "BN301",
    "train-mode-at-inference",
    needs=("records", "model"),
    purposes=("infer", "export"),
    starred=True,
    explains=("BN305", "BN310", "BN601"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Any batch norm that would normalize with its batch."""
    live = tuple(r.name for r in evidence.records if r.training and not r.fixed)
    if live:
        yield Found(
            layers=live,
            message="in training mode: results depend on the other samples of the batch, and every "
            "call changes the running statistics.",
            severity=Severity.ERROR,
            numbers={"layers": len(live)},
            fix=EVAL,
        )

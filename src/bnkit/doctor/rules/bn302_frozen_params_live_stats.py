"""Frozen parameters over running statistics that still move.

## What it does

When fine-tuning: finds batch norms in training mode whose weight and bias, or whose producing
layer, do not require gradients.

## Why is this bad?

`requires_grad = False` stops the optimizer and not the average. The "frozen" part drifts to the new
data with every forward pass. Measured on digits with shifted fine-tuning data: 0.364 on the
original data instead of 0.990.

## Known problems

Adapting the statistics alone (AdaBN) is done on purpose: suppress with that reason.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    >>> _ = model.requires_grad_(False)
    >>> bnkit.diagnose(model, purpose="finetune").findings[0].code
    'BN302'

## Use instead

`bnkit.nn.freeze_(model.backbone)` keeps its layers in eval mode through every `train()`.

## Fix safety

Safe: `eval()` on the layers, and a `train()` that leaves them alone.

## References

pytorch/pytorch issue 86590; Lightning-AI/pytorch-lightning issue 2551; keras-team/keras pull
request 9965.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Fix, Found, Severity
from bnkit.doctor.rule import rule


@rule(
    "BN302",
    "frozen-params-live-stats",
    needs=("records", "model"),
    purposes=("finetune",),
    starred=True,
    explains=("BN204", "BN305", "BN310"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Training mode and tracking, over parameters that do not learn."""
    live = tuple(
        r.name
        for r in evidence.records
        if r.training
        and r.tracks
        and r.has_statistics
        and (r.trainable is False or r.producer_trainable is False)
    )
    if live:
        yield Found(
            layers=live,
            message="their parameters are frozen and their running statistics are not: every "
            "forward pass in train mode moves them towards the new data.",
            severity=Severity.ERROR,
            numbers={"layers": len(live)},
            fix=Fix("freeze", "safe", "bnkit.nn.freeze_(model.backbone), or eval() after train()"),
        )

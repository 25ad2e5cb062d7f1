"""Quantization-aware training is nearly over, and the running statistics still move.

## What it does

Finds batch norms inside modules of quantization-aware training of torch that still update their
statistics although the observers of the same model are already switched off; for export, any that
do.

## Why is this bad?

Those modules fold the running statistics into the weights before they quantize them. As long as the
statistics move, so does the grid, and the result is not the one that was trained.

## Known problems

None known: the recipe of torch freezes the statistics before the observers.

## Example

    >>> import torch, bnkit, warnings
    >>> from torch.ao.nn.intrinsic.qat import ConvBn2d
    >>> from torch.ao.quantization import get_default_qat_qconfig
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     layer = ConvBn2d(3, 4, 3, qconfig=get_default_qat_qconfig("fbgemm"))
    >>> found = bnkit.diagnose(torch.nn.Sequential(layer).train(), purpose="export").findings
    >>> [f.layers for f in found if f.code == "BN706"]
    [('0.bn',)]

## Use instead

`model.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats)` before the observers are switched off.

## Fix safety

Manual.

## References

pytorch/pytorch pull request 26624; openvinotoolkit/nncf issue 88.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN706",
    "qat-stats-live",
    needs=("records", "model"),
    purposes=("train", "finetune", "export"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Live layers of quantization-aware training, late."""
    facts = evidence.model
    if facts is None or not facts.quantization_aware:
        return
    late = evidence.purpose == "export" or facts.observing is False
    known = set(facts.quantization_aware)
    names = tuple(r.name for r in evidence.records if r.name in known and r.training and r.tracks)
    if late and names:
        yield Found(
            layers=names,
            message="it is folded into weights that are quantized, and still updates its "
            "statistics: the grid of the weights moves with every batch.",
            fix=manual("model.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats)"),
        )

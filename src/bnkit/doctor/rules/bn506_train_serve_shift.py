"""The data of inference have other statistics than those of training.

## What it does

With batches of both (`data` and `serving=`): the population statistics of a layer differ by d90 >=
0.5 or r90 >= 1.

## Why is this bad?

The network meets inputs it was not normalized for.

## Known problems

A domain that is meant to be other: adapt the statistics (AdaBN).

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.BatchNorm1d(4).eval()
    >>> model.running_mean += 1e-3
    >>> x = torch.randn(640, 4)
    >>> [f.code for f in bnkit.diagnose(model, x, serving=3 * x + 1).findings]
    ['BN506']

## Use instead

The same preprocessing; or statistics of the new domain.

## Fix safety

Unsafe: `recalibrate` on the new data.

## References

Li et al. 2016, "Revisiting Batch Normalization for Practical Domain Adaptation".
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.measured import distance
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule


@rule("BN506", "train-serve-shift", needs=("records", "probe", "serving"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers at which both sets of data are apart."""
    one, other = evidence.probe, evidence.serving
    if one is None or other is None:
        return
    apart = {}
    for name in one.layers:
        if name in other.layers:
            a, b = other.layers[name], one.layers[name]
            eps = evidence.by_name[name].eps or 0.0
            far = distance((a.mean, a.var), (b.mean, b.var), eps)
            if far.verdict == "error":
                apart[name] = far
    if apart:
        worst = max(apart.values())
        yield Found(
            layers=tuple(apart),
            message=f"the data of inference lie up to {worst.d90:.2g} standard deviations from "
            "those of training.",
            certainty="measured",
            numbers={"d90": worst.d90, "r90": worst.r90},
            fix=RECALIBRATE,
        )

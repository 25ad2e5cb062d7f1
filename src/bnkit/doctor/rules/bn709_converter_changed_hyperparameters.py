"""A conversion that changed eps.

## What it does

Compares a converted subject with its source (`relation="converted"`): eps that differ, and affine
parameters that are there in one alone.

## Why is this bad?

The function has changed: eps of 1e-3 instead of 1e-5 costs up to all of the accuracy (BN207).

## Known problems

Conversions that move the difference into the variance.

## Example

    >>> import torch, bnkit
    >>> one, two = torch.nn.BatchNorm1d(3, eps=1e-3).eval(), torch.nn.BatchNorm1d(3).eval()
    >>> for layer in (one, two):
    ...     _ = layer.running_mean.add_(0.1)
    >>> bnkit.diagnose(one, pair=two, relation="converted").findings[0].code
    'BN709'

## Use instead

The source's eps.

## Fix safety

Manual: restore it.

## References

qualcomm/aimet issue 1957.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.naming import short_name
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN709",
    "converter-changed-hyperparameters",
    needs=("records", "pair"),
    explains=("BN207", "BN710"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers with another eps than their source's."""
    pair = evidence.pair
    if pair is None or pair.relation != "converted":
        return
    differ = []
    for one in evidence.records:
        source = pair.records.get(short_name(one.name))
        if source is not None and one.eps is not None and source.eps is not None:
            eps = abs(one.eps - source.eps) > 1e-3 * source.eps  # ONNX stores it in float32
            if eps or (one.weight is None) != (source.weight is None):
                differ.append((one.name, one.eps, source.eps))
    if differ:
        yield Found(
            layers=tuple(name for name, *_ in differ),
            message=f"eps is {differ[0][1]:g} and was {differ[0][2]:g} in the source, or weight "
            "and bias are there in one alone.",
            severity=Severity.ERROR,
            numbers={"eps": differ[0][1], "eps_of_source": differ[0][2]},
            fix=manual("restore eps, weight and bias of the source"),
        )

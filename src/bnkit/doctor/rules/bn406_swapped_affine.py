"""Weight and bias in each other's place.

## What it does

In at least four fifths of the layers the mean weight is near 0 and the mean bias near 1.

## Why is this bad?

A converter mapped gamma and beta the wrong way round.

## Known problems

None known; at least two layers are needed.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.BatchNorm1d(9)).eval()
    >>> with torch.no_grad():
    ...     for layer in model:
    ...         _ = layer.running_mean.normal_()
    ...         _ = layer.weight.normal_(0, 0.05); _ = layer.bias.normal_(1, 0.05)
    >>> bnkit.diagnose(model).errors[0].code
    'BN406'

## Use instead

gamma is weight, beta is bias.

## Fix safety

Safe: swap them.

## References

Converters; docs/doctor.md.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Fix, Found, Severity
from bnkit.doctor.rule import rule


@rule("BN406", "swapped-affine", purposes=("infer", "finetune", "export"), explains=("BN401",))
def check(evidence: Evidence) -> Iterator[Found]:
    """Most layers the wrong way round."""
    layers = [r for r in evidence.records if r.weight is not None and r.bias is not None]
    swapped = [
        r.name
        for r in layers
        if abs(float(np.mean(np.asarray(r.weight)))) < 0.1
        and abs(float(np.mean(np.asarray(r.bias))) - 1) < 0.1
    ]
    if len(layers) >= 2 and len(swapped) >= 0.8 * len(layers):
        yield Found(
            layers=tuple(swapped),
            message=f"in {len(swapped)} of {len(layers)} layers the weights are near 0 and the "
            "biases near 1: they are swapped.",
            severity=Severity.ERROR,
            fix=Fix("swap-affine", "safe", "bnkit fix swaps weight and bias"),
        )

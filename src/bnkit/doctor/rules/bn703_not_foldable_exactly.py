"""A batch norm that cannot be folded exactly into the convolution behind it.

## What it does

Finds batch norms without a layer before them to fold into, whose result goes into a convolution
that pads with zeros; it gives a bound of the error at the border.

## Why is this bad?

Folded, the shift of the batch norm becomes part of the convolution's bias, also where the kernel
reaches into the padding, which was 0 and not the shift. Inside the image the result is exact; at
the border it is off by up to `sum |weight * shift|` over the taps outside.

## Known problems

Exporters do not fold in this direction by themselves. A shift of 0 is folded exactly.

## Example

    >>> import torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)).eval()
    >>> _ = nn.init.constant_(model[1].bias, 0.5)
    >>> every = Selection(level=Severity.INFO, select=("BN703",))
    >>> found = bnkit.diagnose(model, purpose="export", selection=every).findings[0]
    >>> found.layers, found.found.numbers["largest_error"] > 0
    (('1',), True)

## Use instead

Leave it in, or pad the input of the convolution with `-shift / scale` instead of 0.

## Fix safety

Manual.

## References

The formulas: a convolution of a constant is constant only without zero padding.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

NOTICED = 1e-6


@rule(
    "BN703",
    "not-foldable-exactly",
    needs=("records", "model", "flow"),
    purposes=("infer", "export"),
    info=True,
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Bounds of the error at the border."""
    errors = {} if evidence.model is None else evidence.model.border_errors
    off = {n: bound for n, bound in errors.items() if bound > NOTICED}
    if off:
        yield Found(
            layers=tuple(off),
            message=f"folded into the convolution behind it, its shift would be padded with 0: up "
            f"to {max(off.values()):.3g} off at the border.",
            severity=Severity.INFO,
            numbers={"largest_error": max(off.values())},
            fix=manual("leave it in, or pad with -shift / scale"),
        )

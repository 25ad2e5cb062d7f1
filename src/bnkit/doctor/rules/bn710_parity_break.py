"""A converted network computes something else, from this layer on.

## What it does

With the source (`pair=`, `relation="converted"`) and batches: runs both in eval mode on the same
samples and finds the first batch norm whose result differs by more than 1e-3 of its size.

## Why is this bad?

A conversion that is right agrees to rounding. The first layer that does not is where to look; all
others only pass it on.

## Known problems

Both must be modules with the same names. A network that draws random numbers in eval mode differs
from itself.

## Example

    >>> import copy, torch, bnkit
    >>> nn = torch.nn
    >>> source = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2))
    >>> _ = source(2 * torch.randn(640, 4))
    >>> converted = copy.deepcopy(source).eval()
    >>> with torch.no_grad():
    ...     _ = converted[0].weight[:2].mul_(1.1)
    >>> data = 2 * torch.randn(640, 4)
    >>> found = bnkit.diagnose(converted, data, "export", pair=source, relation="converted")
    >>> [f.layers for f in found.findings if f.code == "BN710"]
    [('1',)]

## Use instead

Compare the layer before it, its weights, eps and padding with those of the source.

## Fix safety

Manual.

## References

float32 has a precision of 6e-8; 1e-3 leaves room for 16-bit arithmetic.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

LARGEST = 1e-3


@rule("BN710", "parity-break", needs=("records", "parity"))
def check(evidence: Evidence) -> Iterator[Found]:
    """The first result that differs."""
    for name, apart in (evidence.parity or {}).items():
        if apart > LARGEST:
            yield Found(
                layers=(name,),
                message=f"its result differs from the source's by {apart:.2g} of its size, and is "
                "the first that does.",
                severity=Severity.ERROR,
                certainty="measured",
                numbers={"relative_difference": apart, "threshold": LARGEST},
                fix=manual("compare what stands before this layer with the source"),
            )
            return

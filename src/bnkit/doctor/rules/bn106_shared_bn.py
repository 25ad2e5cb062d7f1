"""One batch norm that is called more than once in a forward pass.

## What it does

Counts the calls of each batch norm. With batches it compares what the calls see: error when their
means or variances lie as far apart as BN204 calls an error, else a warning.

## Why is this bad?

The running statistics become a mixture that describes none of the inputs. Measured on two domains
through one network: accuracy 0.530 instead of 0.992.

## Known problems

Siamese twins that see the same distribution twice are fine; the warning then only says that one
step updates the statistics twice.

## Example

    >>> import torch, bnkit
    >>> class Twice(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.bn = torch.nn.BatchNorm1d(4)
    ...     def forward(self, x):
    ...         return self.bn(x) + self.bn(5 * x + 3)
    >>> found = bnkit.diagnose(Twice(), torch.randn(64, 4), purpose="train").findings[0]
    >>> found.code, found.severity.label
    ('BN106', 'error')

## Use instead

One batch norm for each call, with shared weight and bias if wanted; or
`bnkit.nn.DomainBatchNorm2d` for domains.

## Fix safety

Manual: the architecture changes.

## References

pytorch/pytorch issue 1738; keras-team/keras issues 6623, 8794.
"""

from collections import Counter
from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

_FIX = manual("give each call a batch norm of its own, or use bnkit.nn.DomainBatchNorm2d")


@rule(
    "BN106",
    "shared-bn",
    needs=("records", "flow"),
    starred=True,
    explains=("BN204", "BN505", "BN209", "BN602"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers with more than one call; an error where the calls see different data."""
    if evidence.flow is None:
        return
    calls = Counter(n.layer for n in evidence.flow.batch_norms() if n.layer in evidence.by_name)
    shared = {name: k for name, k in calls.items() if k > 1}
    probed = {} if evidence.probe is None else evidence.probe.layers
    apart = {
        name: probed[name].calls_apart
        for name in shared
        if name in probed and probed[name].calls_apart.verdict == "error"
    }
    if apart:
        worst = max(apart.values(), key=lambda d: max(d.d90, d.r90 / 2))
        yield Found(
            layers=tuple(apart),
            message=f"called {max(shared[n] for n in apart)} times in a forward pass on different "
            "distributions: one set of statistics cannot describe both.",
            severity=Severity.ERROR,
            certainty="measured",
            numbers={"d90": worst.d90, "r90": worst.r90, "calls": max(shared.values())},
            fix=_FIX,
        )
    rest = tuple(n for n in shared if n not in apart)
    if rest:
        yield Found(
            layers=rest,
            message=f"called {max(shared[n] for n in rest)} times in a forward pass: each step "
            "updates the running statistics as often.",
            certainty="measured" if probed else "proved",
            numbers={"calls": max(shared.values())},
            fix=_FIX,
        )

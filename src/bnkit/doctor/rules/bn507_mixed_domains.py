"""One batch norm for inputs of several domains.

## What it does

With batches of each domain (`domains=`): the statistics that two domains have at the same layer
lie at least one standard deviation (d90) or two powers of two (r90) apart.

## Why is this bad?

The running statistics are a mixture that fits none of the domains, while training normalized each
batch with its own. Measured on digits: 0.530 instead of 0.992.

## Known problems

Domains that were mixed within every batch in training are normalized together, in both modes.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)).eval()
    >>> x = torch.randn(256, 4)
    >>> found = bnkit.diagnose(model, x, "finetune", domains={"a": x, "b": 5 * x + 9}).findings
    >>> "BN507" in [f.code for f in found]
    True

## Use instead

`bnkit.nn.DomainBatchNorm2d`, with statistics for each domain.

## Fix safety

Manual: the architecture changes.

## References

Chang et al. 2019, "Domain-Specific Batch Normalization"; Xie et al. 2020 (AdvProp), section 3.2.
"""

from collections.abc import Iterator
from itertools import combinations

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.measured import Distance, distance
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

D90, R90 = 1.0, 2.0


@rule(
    "BN507",
    "mixed-domains",
    needs=("records", "domains"),
    explains=("BN204", "BN505", "BN210", "BN211"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Layers at which two domains are far apart."""
    domains = evidence.domains or {}
    apart: dict[str, Distance] = {}
    for one, other in combinations(domains.values(), 2):
        for name in one.layers.keys() & other.layers.keys():
            a, b = one.layers[name], other.layers[name]
            eps = evidence.by_name[name].eps or 0.0
            far = distance((a.mean, a.var), (b.mean, b.var), eps)
            if far.d90 >= D90 or far.r90 >= R90:
                apart[name] = max(far, apart.get(name, far))
    if not apart:
        return
    damage = evidence.probe is not None and any(
        p.verdict == "error" for p in evidence.probe.in_order if p.name in apart
    )
    worst = max(apart.values())
    yield Found(
        layers=tuple(r.name for r in evidence.records if r.name in apart),
        message=f"the domains {', '.join(domains)} lie {worst.d90:.2g} standard deviations apart: "
        "one set of statistics cannot describe them.",
        severity=Severity.ERROR if damage else Severity.WARNING,
        certainty="measured",
        numbers={"d90": worst.d90, "r90": worst.r90, "threshold": D90},
        fix=manual("bnkit.nn.DomainBatchNorm2d keeps statistics for each domain"),
    )

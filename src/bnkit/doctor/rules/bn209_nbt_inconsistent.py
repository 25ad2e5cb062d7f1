"""Layers of one network that count different numbers of batches.

## What it does

Compares `num_batches_tracked` with the count that most layers have. A whole multiple, or fraction,
is a warning: the layer is updated several times per step, by recomputed activations or by several
calls. Another count, off by more than 5 %, is a remark.

## Why is this bad?

A layer that is updated twice per step forgets twice as fast, and averages over half the data.

## Known problems

Staged unfreezing, and networks that train in turn (the discriminator of a GAN), count differently
by design. Layers at 0 are left to BN108 and BN208.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> model = nn.ModuleList([nn.BatchNorm1d(3) for _ in range(3)])
    >>> for layer, count in zip(model, (500, 1000, 500)):
    ...     _ = layer.num_batches_tracked.fill_(count)
    >>> found = bnkit.diagnose(model, purpose="train").findings[0]
    >>> found.code, found.layers, found.found.numbers["ratio"]
    ('BN209', ('1',), 2.0)

## Use instead

`bnkit.nn.recomputing` around recomputed parts, `bnkit.nn.no_update()` around extra passes.

## Fix safety

Manual: the statistics are averages all the same; the next training decides.

## References

pytorch/pytorch issues 96136, 62471.
"""

from collections import Counter
from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

TOLERANCE = 0.05
FEWEST = 8


@rule("BN209", "nbt-inconsistent")
def check(evidence: Evidence) -> Iterator[Found]:
    """Counts beside the most common one."""
    counts = {r.name: r.batches for r in evidence.with_statistics if r.batches}
    if len(counts) < 2:
        return
    common = max(Counter(counts.values()).items(), key=lambda item: (item[1], item[0]))[0]
    ratios = {n: count / common for n, count in counts.items()}
    off = {n: ratio for n, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE}
    enough = common >= FEWEST
    whole = {n: r for n, r in off.items() if enough and _is_multiple(counts[n], common)}
    if whole:
        yield Found(
            layers=tuple(whole),
            message=f"counts {max(whole.values(), key=_size):.3g} times the batches of most "
            "layers, exactly: one step updates its statistics another number of times.",
            certainty="suspected",
            numbers={"ratio": max(whole.values(), key=_size), "batches": common},
            fix=manual("bnkit.nn.recomputing, or bnkit.nn.no_update() in extra passes"),
        )
    rest = {n: ratio for n, ratio in off.items() if n not in whole}
    if rest:
        yield Found(
            layers=tuple(rest),
            message=f"counts {max(rest.values(), key=_size):.3g} times the batches of most layers.",
            severity=Severity.INFO,
            certainty="suspected",
            numbers={"ratio": max(rest.values(), key=_size), "batches": common},
        )


def _is_multiple(count: int, common: int) -> bool:
    return count % common == 0 or common % count == 0


def _size(ratio: float) -> float:
    return max(ratio, 1 / ratio)

"""Two encoders in training mode see the same batch: the statistics tell which pairs match.

## What it does

In a watched loop: finds a second encoder, without trainable parameters and run without gradients,
whose batch norms are in training mode, not synchronized, and the twins of others (the same names
but for one part, the same sizes) that do get gradients with batches of the same size.

## Why is this bad?

Both views of a sample are normalized together with the same other samples. The common statistics
identify the batch, which solves the contrastive task without looking at the image.

## Known problems

Shuffled batches cannot be told from plain ones. SimCLR with synchronized statistics, BYOL and mean
teachers work without.

## Example

    >>> import copy, torch, bnkit
    >>> from bnkit.doctor import Selection, Severity
    >>> nn = torch.nn
    >>> q = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    >>> model = nn.ModuleDict({"q": q, "k": copy.deepcopy(q).requires_grad_(False)})
    >>> optimizer = torch.optim.SGD(q.parameters(), lr=0.1)
    >>> with bnkit.watch(model, optimizer) as seen:
    ...     x = torch.randn(64, 4)
    ...     with torch.no_grad():
    ...         key = model["k"](x + 0.1)
    ...     (model["q"](x) * key).sum().backward()
    ...     optimizer.step()
    >>> every = Selection(level=Severity.INFO, select=("BN510",))
    >>> [f.layers for f in seen.diagnose(selection=every).findings]
    [('k.1',)]

## Use instead

Shuffle the batch of one encoder between processes, or `bnkit.nn.convert_sync_batchnorm`.

## Fix safety

Manual.

## References

He et al. 2020, "Momentum Contrast", section 3.3; facebookresearch/moco issues 46, 137.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.journal import Journal
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN510",
    "contrastive-leak",
    needs=("records", "journal"),
    purposes=("train", "finetune"),
    info=True,
)
def check(evidence: Evidence) -> Iterator[Found]:
    """A quiet twin of every layer of an encoder."""
    journal = evidence.journal
    if journal is None:
        return
    plain = [r for r in evidence.records if r.kind != "SyncBatchNorm"]
    quiet = [r for r in plain if r.trainable is False and _only_quiet(journal, r.name)]
    live = [r for r in plain if journal.forwards_with_grad.get(r.name)]
    if quiet and all(any(_twins(journal, a, b) for b in live) for a in quiet):
        yield Found(
            layers=tuple(r.name for r in quiet),
            message="a second encoder in training mode normalizes the same batch as its twin: the "
            "statistics tell which samples belong together.",
            severity=Severity.INFO,
            certainty="suspected",
            fix=manual("shuffle the batch of one encoder, or synchronize the statistics"),
        )


def _only_quiet(journal: Journal, name: str) -> bool:
    return bool(journal.without_grad.get(name)) and not journal.forwards_with_grad.get(name)


def _twins(journal: Journal, one: BatchNormRecord, other: BatchNormRecord) -> bool:
    a, b = one.name.split("."), other.name.split(".")
    apart = sum(x != y for x, y in zip(a, b, strict=False))
    alike = len(a) == len(b) and apart == 1 and one.num_features == other.num_features
    sizes = journal.fewest_values
    return alike and sizes.get(one.name) == sizes.get(other.name)

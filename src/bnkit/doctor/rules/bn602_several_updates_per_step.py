"""Running statistics that are updated more than once per optimizer step.

## What it does

In a loop watched with `bnkit.watch`, counts the updates of each layer between two optimizer steps.
Updates during the backward pass come from recomputed activations (checkpointing); others from a
second forward (SAM, an attack, an extra loss) or a shared layer. A steady number of forward passes
per step, as in gradient accumulation, is a remark.

## Why is this bad?

The average forgets k times as fast as its weight says, and with a second forward it describes other
inputs.

## Known problems

Gradient accumulation updates k times by nature; the remark proposes `1 - (1 - m)**(1/k)`.

## Example

    >>> import torch, bnkit
    >>> from torch.utils.checkpoint import checkpoint
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with bnkit.watch(model, optimizer) as seen:
    ...     for _ in range(3):
    ...         checkpoint(model, torch.randn(64, 4), use_reentrant=False).sum().backward()
    ...         optimizer.step()
    >>> "BN602" in [f.code for f in seen.diagnose().findings]
    True

## Use instead

`bnkit.nn.no_update()` around the extra pass, or `bnkit.nn.recomputing` with checkpointing.

## Fix safety

Manual.

## References

pytorch/pytorch issues 96136, 62471; davda54/sam issue 30.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.journal import Journal
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN602", "several-updates-per-step", needs=("journal",), starred=True, explains=("BN209",))
def check(evidence: Evidence) -> Iterator[Found]:
    """Updates in the backward pass, extra updates, and steady accumulation."""
    journal = evidence.journal
    if journal is None or not journal.steps:
        return
    if journal.in_backward:
        yield Found(
            layers=tuple(journal.in_backward),
            message="updated again during the backward pass: activations are recomputed in train "
            "mode, and every batch counts twice.",
            certainty="measured",
            numbers={"updates_in_backward": max(journal.in_backward.values())},
            fix=manual(
                "wrap the checkpointed part in bnkit.nn.recomputing, or use bnkit.nn layers"
            ),
        )
    several = {n: k for n, k in journal.per_step.items() if k > 1 and n not in journal.in_backward}
    if several:
        yield _several(several, journal)


def _several(several: dict[str, int], journal: Journal) -> Found:
    most = max(several.values())
    steady = all(several[n] == k for n, k in journal.forwards_with_grad.items() if n in several)
    text = "as gradient accumulation does" if steady else "by extra forward passes in train mode"
    return Found(
        layers=tuple(several),
        message=f"updated up to {most} times per optimizer step, {text}: the average forgets "
        f"{most} times as fast.",
        severity=Severity.INFO if steady else Severity.WARNING,
        certainty="measured",
        numbers={"updates_per_step": most},
        fix=manual("bnkit.nn.no_update() around the extra pass, or momentum 1 - (1 - m)**(1/k)"),
    )

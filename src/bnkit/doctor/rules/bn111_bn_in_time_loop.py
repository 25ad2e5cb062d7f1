"""One batch norm for every step of a loop over time.

## What it does

With batches: finds a batch norm that is called at least three times in a forward pass, as often as
an input of rank 3, or one of tokens, is long; or in a number that differs from batch to batch.

## Why is this bad?

The first steps of a recurrent network have other statistics than the later ones; one set describes
none of them. A longer sequence also counts for more in the average.

## Known problems

None known beyond a chance equality of the number of calls and a size of the input.

## Example

    >>> import torch, bnkit
    >>> class Recurrent(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.cell, self.bn = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
    ...     def forward(self, x):
    ...         h = torch.zeros_like(x[:, 0])
    ...         for t in range(x.shape[1]):
    ...             h = self.bn(self.cell(h) + x[:, t]).relu()
    ...         return h
    >>> found = bnkit.diagnose(Recurrent(), torch.randn(64, 7, 4), purpose="train").findings[0]
    >>> found.code, found.found.numbers["calls"]
    ('BN111', 7)

## Use instead

Statistics for each step (Cooijmans et al. 2016), or layer normalization.

## Fix safety

Manual: the architecture changes.

## References

Laurent et al. 2015, "Batch Normalized Recurrent Neural Networks"; Cooijmans et al. 2016, "Recurrent
Batch Normalization"; keras-team/keras issue 8794.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.measured import LayerProbe
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

FEWEST = 3


@rule(
    "BN111",
    "bn-in-time-loop",
    needs=("records", "probe"),
    explains=("BN106", "BN204", "BN209", "BN505", "BN602"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Calls as numerous as the steps; an error where the steps differ as BN106 has it."""
    probe = evidence.probe
    if probe is None:
        return
    looped = [p for p in probe.in_order if p.calls >= FEWEST and _follows(p, probe.lengths)]
    for severity in (Severity.ERROR, Severity.WARNING):
        apart = severity is Severity.ERROR
        chosen = [p for p in looped if (p.calls_apart.verdict == "error") is apart]
        if chosen:
            most = max(p.calls for p in chosen)
            yield Found(
                layers=tuple(p.name for p in chosen),
                message=f"called {most} times in a forward pass, once for each step: one set of "
                "statistics stands for all steps.",
                severity=severity,
                certainty="measured",
                numbers={"calls": most, "d90": max(p.calls_apart.d90 for p in chosen)},
                fix=manual("statistics of its own for each step, or layer normalization"),
            )


def _follows(one: LayerProbe, lengths: frozenset[int]) -> bool:
    return one.calls in lengths or one.fewest_calls != one.calls

"""Evaluation runs with other weights than those that gathered the statistics.

## What it does

In a watched loop: finds forward passes in eval mode with parameters that are not those of the last
training pass or optimizer step, while the running statistics are.

## Why is this bad?

Schedule-free optimizers, Lookahead and averaged weights evaluate at another point than they train
at. The statistics describe the layers of the training point, not of this one.

## Known problems

Weights that are clipped or projected after each step differ too, by little. Whether it costs
anything is for BN204 to say: give batches. Only a few parameters are compared.

## Example

    >>> import torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with bnkit.watch(model, optimizer) as seen:
    ...     model(torch.randn(64, 4)).square().mean().backward()
    ...     optimizer.step()
    ...     with torch.no_grad():
    ...         _ = model[0].weight.mul_(0.5)  # weights of another point are put in
    ...         _ = model.eval()(torch.randn(64, 4))
    >>> [f.code for f in seen.diagnose().findings]
    ['BN611']

## Use instead

`bnkit.recalibrate(model, data).apply()` once the evaluated weights are in place.

## Fix safety

Unsafe: `recalibrate`, with the evaluated weights.

## References

facebookresearch/schedule_free issue 60; timgaripov/swa issue 7.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule


@rule("BN611", "eval-other-weights", needs=("records", "journal"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Parameters exchanged under statistics that stayed."""
    journal = evidence.journal
    if journal is None or journal.exchanged <= 0:
        return
    yield Found(
        layers=tuple(r.name for r in evidence.with_statistics if not r.fixed),
        message=f"a weight of the evaluation differs by {journal.exchanged:.2g} of its norm from "
        "that of training: the running statistics belong to other weights.",
        certainty="measured",
        numbers={"relative_change": journal.exchanged},
        fix=RECALIBRATE,
    )

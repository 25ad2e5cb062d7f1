"""Gradients are differentiated again through a batch norm in training mode.

## What it does

In a watched loop: finds batch norms that took part, in training mode, in a backward pass with
`create_graph=True`.

## Why is this bad?

A gradient penalty asks for the slope of the network at each sample. With batch statistics a result
depends on all samples, so that the gradient by one input mixes those of the others: the penalty
bounds something else.

## Known problems

Some report that it helps all the same. Learning to learn (MAML) and Hessians differentiate twice on
purpose.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> critic = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    >>> with bnkit.watch(critic, optimizer) as seen:
    ...     x = torch.randn(64, 4, requires_grad=True)
    ...     slope, = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    ...     (slope.norm(dim=1) - 1).square().mean().backward()
    ...     optimizer.step()
    >>> [f.code for f in seen.diagnose().findings]
    ['BN116']

## Use instead

Layer or instance normalization in the critic.

## Fix safety

Manual: the network has to be trained again.

## References

Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", section 4.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule(
    "BN116",
    "bn-under-gradient-penalty",
    needs=("journal",),
    purposes=("train", "finetune"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Backward passes that built a graph."""
    journal = evidence.journal
    if journal is None:
        return
    twice = {n: k for n, k in journal.differentiated_twice.items() if k}
    if twice:
        yield Found(
            layers=tuple(twice),
            message="gradients through it are differentiated again while it normalizes with the "
            "batch: the gradient by one sample depends on the others.",
            certainty="measured",
            numbers={"backward_passes": max(twice.values())},
            fix=manual("use layer or instance normalization under a gradient penalty"),
        )

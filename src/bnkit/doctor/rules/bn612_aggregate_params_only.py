"""Networks were averaged by their parameters, and the buffers were forgotten.

## What it does

With the networks that were averaged (`members=`): finds batch norms whose running statistics are at
their initial values or bitwise those of one member, while the parameters are a weighted mean of all
and the members' statistics differ.

## Why is this bad?

An average over `parameters()`, as federated averaging and model soups are often written, leaves
buffers out. The mean of the weights then normalizes with the statistics of one client, or of none.

## Known problems

Networks of which a server keeps its own statistics on purpose (FedBN). Even averaged statistics are
approximate: those of a mean of networks are not the mean of theirs.

## Example

    >>> import copy, torch, bnkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> members = [copy.deepcopy(model) for _ in range(3)]
    >>> for member in members:
    ...     _ = torch.nn.init.normal_(member[0].weight)
    ...     _ = member(torch.randn(64, 4))
    >>> with torch.no_grad():
    ...     for parameter, *theirs in zip(*(m.parameters() for m in (model, *members))):
    ...         _ = parameter.copy_(sum(theirs) / 3)
    >>> found = bnkit.diagnose(model.eval(), members=members).findings
    >>> [f.code for f in found]
    ['BN612']

## Use instead

Average all floating point entries of `state_dict()`, and recalibrate where there are data.

## Fix safety

Unsafe: `recalibrate`.

## References

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data"; Li
et al. 2021, "FedBN".
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule


@rule(
    "BN612",
    "aggregate-params-only",
    needs=("records", "members"),
    explains=("BN201", "BN204", "BN205", "BN208"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """A mean of parameters over statistics of one."""
    mixture = evidence.members
    if mixture is None or mixture.shares is None or not mixture.stale:
        return
    shares = ", ".join(f"{s:.3g}" for s in mixture.shares)
    yield Found(
        layers=tuple(mixture.stale),
        message=f"the parameters are a mean of the members ({shares}), the running statistics are "
        f"{next(iter(mixture.stale.values()))}: only parameters were averaged.",
        numbers={"members": len(mixture.shares)},
        fix=RECALIBRATE,
    )

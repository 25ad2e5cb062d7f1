"""A batch norm in front of a function that saturates.

## What it does

Finds batch norms whose result goes straight into sigmoid, tanh or softmax: a remark. A warning when
that function gives the result of the network, or, with batches, when more than half of what goes
into sigmoid or tanh lies beyond 4, where nothing is left of the gradient.

## Why is this bad?

Normalized values lie in the nearly linear middle of a sigmoid; a large weight pushes them to its
flat ends. As the result of a network, the probability of one sample is measured against the others
of its batch.

## Known problems

Gates do so on purpose: 2 % of published networks. Values beyond 4 mean nothing for softmax, which
only knows differences, and are not counted there.

## Example

    >>> import torch, bnkit
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Sigmoid())
    >>> [f.code for f in bnkit.diagnose(model, purpose="train").findings]
    ['BN104']

## Use instead

End with a linear layer; between layers, relu after batch norm.

## Fix safety

Manual: the network has to be trained again.

## References

Ioffe & Szegedy 2015, section 3.2; census of docs/doctor.md.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.flow import Flow, Node
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

FAR_SHARE = 0.5


@rule("BN104", "bn-before-saturating", needs=("records", "flow"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Gates behind batch norms; worse at the end, and where they are saturated."""
    flow = evidence.flow
    if flow is None:
        return
    gates = {n.layer: _gates(flow, n) for n in flow.batch_norms() if n.layer in evidence.by_name}
    ends = [name for name, found in gates.items() if any(flow.is_output(g) for g in found)]
    probed = {} if evidence.probe is None else evidence.probe.layers
    shares = {n: probed[n].far or 0.0 for n in gates if n in probed}
    far = {n: share for n, share in shares.items() if share > FAR_SHARE}
    if ends:
        yield Found(
            layers=tuple(ends),
            message="the network returns a sigmoid, tanh or softmax of its result.",
            certainty="suspected",
            fix=manual("end with a linear layer"),
        )
    if far:
        yield Found(
            layers=tuple(far),
            message=f"{max(far.values()):.0%} of its results are beyond 4, where sigmoid and tanh "
            "are flat: no gradient comes back.",
            certainty="measured",
            numbers={"share_beyond_4": max(far.values()), "threshold": FAR_SHARE},
            fix=manual("use relu, or smaller weights of the batch norm"),
        )
    rest = tuple(n for n, found in gates.items() if found and n not in {*ends, *far})
    if rest:
        yield Found(
            layers=rest,
            message="its result goes into a sigmoid, tanh or softmax.",
            severity=Severity.INFO,
            certainty="suspected",
        )


def _gates(flow: Flow, node: Node) -> list[Node]:
    return [after for after in flow.after(node) if after.kind == "gate"]

"""An eps that is not small beside the variances.

## What it does

Compares `eps` with the running variance. Error: the median variance of a layer is below eps.
Warning: more than a tenth of its channels have a variance below 10 eps.

## Why is this bad?

`1 / sqrt(var + eps)` is then decided by eps. A network trained with 1e-5 and run with TensorFlow's
1e-3 loses its scale. Measured on digits, by var/eps: 237 costs nothing, 2.4 costs 0.4 points, 0.2
costs 33, 0.02 leaves chance.

## Known problems

A network that was trained with the same large eps is consistent; compare with the configuration of
its training. Channels that are constant or pruned have no variance.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(3, eps=1e-3).eval()
    >>> layer.running_mean += 0.1
    >>> layer.running_var *= 2e-4
    >>> bnkit.diagnose(layer).findings[0].code
    'BN207'

## Use instead

The eps of the training: torch 1e-5, TensorFlow and Keras 1e-3.

## Fix safety

Manual: set eps to that of the training. Statistics are not wrong.

## References

qualcomm/aimet issue 1957; pytorch/examples issue 289.
"""

from collections.abc import Iterator

import numpy as np

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule

FACTOR, SHARE = 10, 0.1


@rule(
    "BN207",
    "eps-dominated",
    purposes=("infer", "finetune", "export"),
    starred=True,
    explains=("BN204", "BN505", "BN508"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """One finding for the layers beyond either line."""
    readable = [r for r in evidence.with_statistics if r.eps and r.finite]
    severe = [r for r in readable if _median(r) < (r.eps or 0)]
    mild = [r for r in readable if r not in severe and _share(r) > SHARE]
    for records, severity in ((severe, Severity.ERROR), (mild, Severity.WARNING)):
        if records:
            worst = min(records, key=lambda r: _median(r) / (r.eps or 1))
            ratio = _median(worst) / (worst.eps or 1)
            yield Found(
                layers=tuple(r.name for r in records),
                message=f"the median running_var is {ratio:.2g} times eps={worst.eps:g} in "
                f"{worst.name!r}: eps decides the scale. Was it trained with this eps?",
                severity=severity,
                numbers={"var_over_eps": ratio, "share_below_10_eps": _share(worst)},
                fix=manual("set eps to that of the training (torch 1e-5, Keras 1e-3)"),
            )


def _median(record: BatchNormRecord) -> float:
    return float(np.median(record.running_var)) if record.running_var is not None else np.inf


def _share(record: BatchNormRecord) -> float:
    if record.running_var is None or record.eps is None:
        return 0.0
    return float(np.mean(record.running_var < FACTOR * record.eps))

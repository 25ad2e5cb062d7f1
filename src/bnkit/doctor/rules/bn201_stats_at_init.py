"""Running statistics that were never gathered, or were lost.

## What it does

Finds networks whose every running mean is exactly 0 and every running variance exactly 1, although
the weight or bias of a batch norm has moved, or the network is meant for inference.

## Why is this bad?

In eval mode such a layer normalizes nothing. The usual causes: only `model.parameters()` were
saved, averaged (EMA, federated averaging) or sent; a converter dropped the buffers; in TensorFlow 1
the update operations never ran. Measured on digits: accuracy 0.380 instead of 0.996.

## Known problems

A network that was trained with batch norm in eval mode looks the same and must not be
recalibrated; with batches and labels the doctor tells the two apart (BN308). An untrained network
is reported as a warning, and only for inference. `num_batches_tracked` proves nothing: a
checkpoint without that key loads as 0.

## Example

    >>> import torch, bnkit
    >>> layer = torch.nn.BatchNorm1d(3).eval()
    >>> with torch.no_grad():
    ...     _ = layer.weight.uniform_()
    >>> bnkit.diagnose(layer).findings[0].code
    'BN201'

## Use instead

Save and average `model.state_dict()`, which holds the buffers, and load it with `strict=True`.

## Fix safety

Unsafe: `recalibrate` estimates the statistics from data and writes a new file. It is kept only when
the metric improves.

## References

Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3; tensorflow/tensorflow issue 1122;
pytorch/ignite issue 2590.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import RECALIBRATE
from bnkit.doctor.rule import rule


@rule(
    "BN201",
    "stats-at-init",
    purposes=("infer", "finetune", "export"),
    starred=True,
    explains=("BN204", "BN208", "BN210", "BN403"),
)
def check(evidence: Evidence) -> Iterator[Found]:
    """Every layer at its first statistics, in a network that is not at its first parameters."""
    layers = [r for r in evidence.with_statistics if not r.fixed]
    if not layers or not all(r.at_init for r in layers):
        return
    names = tuple(r.name for r in layers)
    if all(r.affine_at_init for r in layers):
        if evidence.purpose == "infer":
            yield Found(
                layers=names,
                message="running_mean is exactly 0, running_var exactly 1, and no weight or bias "
                "has moved: the network is untrained, or nothing was loaded into it.",
                certainty="suspected",
            )
        return
    seen = max((r.batches or 0) for r in layers)
    counted = f" although {seen} batches were counted" if seen else ""
    yield Found(
        layers=names,
        message=f"running_mean is exactly 0 and running_var exactly 1{counted}, yet weight or bias "
        "moved: the statistics were lost, or never gathered.",
        severity=Severity.ERROR,
        numbers={"layers": len(names), "batches_counted": seen},
        cause="statistics-reset" if seen else "statistics-lost",
        fix=RECALIBRATE,
    )

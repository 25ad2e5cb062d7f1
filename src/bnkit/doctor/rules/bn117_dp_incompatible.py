"""Batch norm in a training that promises privacy sample by sample.

## What it does

Finds batch norms that normalize with the batch where the model or the optimizer says that gradients
are taken per sample: a `GradSampleModule` or a `DPOptimizer` of opacus.

## Why is this bad?

Differential privacy bounds what one sample can change. With batch statistics every sample changes
the gradients of all others, so that the bound that is reported does not hold.

## Known problems

Frozen batch norms are constants, and allowed. Only opacus is known by name; `torch.func.vmap`
refuses a batch norm in training mode by itself.

## Example

    >>> from bnkit.doctor import all_rules
    >>> from bnkit.doctor.evidence import Evidence
    >>> from bnkit.doctor.facts import ModelFacts
    >>> from bnkit.doctor.record import BatchNormRecord
    >>> layer = BatchNormRecord(name="bn", kind="BatchNorm2d", num_features=8, training=True)
    >>> facts = ModelFacts(training=True, per_sample_gradients=True)
    >>> evidence = Evidence("train", (layer,), model=facts)
    >>> [found.severity.label for found in all_rules()["BN117"].check(evidence)]
    ['error']

## Use instead

Group normalization with gcd(32, channels) groups, as opacus' own fixer puts in.

## Fix safety

Manual: the network has to be trained again.

## References

Opacus, `opacus/validators/batch_norm.py`; the page "Patching Batch Norm" of torch.func.
"""

from collections.abc import Iterator

from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Found, Severity
from bnkit.doctor.remedies import manual
from bnkit.doctor.rule import rule


@rule("BN117", "dp-incompatible", needs=("records", "model"), purposes=("train", "finetune"))
def check(evidence: Evidence) -> Iterator[Found]:
    """Live layers beside per-sample gradients."""
    model, optimizer = evidence.model, evidence.optimizer
    declared = model is not None and model.per_sample_gradients
    if not declared and (optimizer is None or not optimizer.private):
        return
    names = tuple(r.name for r in evidence.records if r.training and not r.fixed)
    if names:
        yield Found(
            layers=names,
            message="gradients are taken per sample, and batch statistics make each of them depend "
            "on all samples: the privacy that is accounted for does not hold.",
            severity=Severity.ERROR,
            fix=manual("group normalization, or frozen batch norms: bnkit.nn.freeze_(model)"),
        )

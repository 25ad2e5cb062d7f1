"""Mend a copy: safe repairs by default, recalibration on request, kept only when it helps."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnkit.doctor.batches import Forward
from bnkit.doctor.diagnosing import diagnose
from bnkit.doctor.diagnosis import Diagnosis
from bnkit.doctor.find import batch_norms
from bnkit.doctor.finding import Finding, Impact, Purpose
from bnkit.sources.batches import Batches

Recalibrate = Callable[[nn.Module], object]
# A metric that moved by less than this has not improved.
LEAST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Mending:
    """What was mended, on a copy.

    Attributes:
        model: The mended copy.
        steps: What was done, in words.
        before: The diagnosis of the model as it came.
        after: That of the copy.
        refused: Why the copy should not be used, or None.
    """

    model: nn.Module
    steps: tuple[str, ...]
    before: Diagnosis
    after: Diagnosis
    refused: str | None


def mend(
    model: nn.Module,
    data: Any = None,
    purpose: Purpose = "infer",
    *,
    recalibrate: Recalibrate | None = None,
    forward: Forward | None = None,
    batches: int = 20,
    batch_size: int = 64,
) -> Mending:
    """Mend what was found, on a copy, and examine the copy again.

    Args:
        model: The model; it is not changed.
        data: Batches of the training set, as for `diagnose`.
        purpose: What the model is meant for.
        recalibrate: Writes statistics from data of its own into the copy, where a finding proposes
            that; `lambda model: bnkit.recalibrate_(model, batches)`. Without, it is not done.
        forward: Runs the model on one batch.
        batches: How many batches to take.
        batch_size: Rows of a batch when `data` is tensors.

    Returns:
        The copy, and whether it is better: `refused` is None only when something was mended and no
        measured metric became worse; a recalibration must improve the metric.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        >>> mended = mend(model)
        >>> mended.refused, mended.steps, mended.model.training, model.training
        (None, ('BN301: eval',), False, True)
    """
    options: dict[str, Any] = {"forward": forward, "batches": batches, "batch_size": batch_size}
    if isinstance(data, Iterator):
        data = list(Batches(data, most=batches))  # it is read more than once
    before = diagnose(model, data, purpose, **options)
    copy, steps, wanted = deepcopy(model), [], False
    for finding in before.findings:
        verb = "" if finding.fix is None else finding.fix.verb
        if verb == "recalibrate" and recalibrate is not None and data is not None:
            wanted = True
            steps.append(f"{finding.code}: recalibrate")
        elif verb in _SAFE:
            with torch.no_grad():
                _SAFE[verb](copy, finding)
            steps.append(f"{finding.code}: {verb}")
    if wanted and recalibrate is not None:
        recalibrate(copy)
    after = diagnose(copy, data, purpose, **options)
    refused = _refusal(before, after, steps)
    if refused is None and wanted and not _improved(before.impact, after.impact):
        refused = "the measured metric does not improve"
    return Mending(model=copy, steps=tuple(steps), before=before, after=after, refused=refused)


def _refusal(before: Diagnosis, after: Diagnosis, steps: list[str]) -> str | None:
    if not before.findings:
        return "nothing was found to mend"
    if not steps:
        proposed = {f.fix.verb for f in before.findings if f.fix is not None}
        if "recalibrate" in proposed:
            return "the mend is recalibration, which is unsafe: give training data and ask for it"
        first = before.findings[0]
        advice = "" if first.fix is None else f": {first.fix.text}"
        return f"{first.code} has no automatic mend{advice}"
    if _worse(before.impact, after.impact):
        return "the measured metric becomes worse"
    return None


def _improved(before: Impact | None, after: Impact | None) -> bool:
    if before is None or after is None:
        return False
    if before.metric == "accuracy":
        return after.before > before.before + LEAST
    return after.before < before.before - LEAST


def _worse(before: Impact | None, after: Impact | None) -> bool:
    return before is not None and after is not None and _improved(after, before)


def _eval(model: nn.Module, finding: Finding) -> None:
    del finding
    model.eval()


def _identity(model: nn.Module, finding: Finding) -> None:
    """Numbers with which the layer does nothing: a state_dict keeps its keys."""
    for name in finding.layers:
        layer: Any = batch_norms(model)[name]
        layer.running_mean.zero_()
        layer.running_var.fill_(1)
        layer.weight.fill_((1 + getattr(layer, "eps", 0.0)) ** 0.5)
        layer.bias.zero_()


def _swap(model: nn.Module, finding: Finding) -> None:
    for name in finding.layers:
        layer: Any = batch_norms(model)[name]
        weight = layer.weight.clone()
        layer.weight.copy_(layer.bias)
        layer.bias.copy_(weight)


def _widen(model: nn.Module, finding: Finding) -> None:
    for name in finding.layers:
        batch_norms(model)[name].float()


_SAFE: dict[str, Callable[[nn.Module, Finding], None]] = {
    "eval": _eval,
    "identity": _identity,
    "swap-affine": _swap,
    "widen": _widen,
}

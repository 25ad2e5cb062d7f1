"""`diagnose`: from a subject to a diagnosis."""

import hashlib
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from bnkit.core.errors import SpecError
from bnkit.doctor.batches import Forward
from bnkit.doctor.compare import compare, state_of
from bnkit.doctor.diagnosis import Diagnosis
from bnkit.doctor.engine import examine
from bnkit.doctor.evidence import Evidence, Relation
from bnkit.doctor.finding import Purpose
from bnkit.doctor.gather import Given, Subject, of_module, of_numbers, opened, probe_more
from bnkit.doctor.journal import Journal
from bnkit.doctor.mixture import Mixture, read_mixture
from bnkit.doctor.naming import short_name
from bnkit.doctor.parity import parity
from bnkit.doctor.read_model import read_optimizer
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.selection import Selection
from bnkit.sources.batches import Batches

_NO_DATA = "no batches given"
_ABSENT = {
    "model": "needs the module, not its numbers alone",
    "flow": "needs the module",
    "probe": _NO_DATA,
    "behaviour": _NO_DATA,
    "loader": "the data do not say how they are cut into batches",
    "serving": "no second set of batches given (serving=)",
    "domains": "no batches by domain given (domains=)",
    "optimizer": "no optimizer given",
    "pair": "no second subject given (pair=)",
    "parity": "needs two modules and batches (pair=, relation='converted')",
    "members": "the networks that were averaged are not given (members=)",
    "journal": "no training loop was watched (bnkit.watch)",
    "program": "not an exported program",
}


def diagnose(
    model: Subject,
    data: Any = None,
    purpose: Purpose = "infer",
    *,
    forward: Forward | None = None,
    batches: int = 16,
    batch_size: int = 64,
    optimizer: torch.optim.Optimizer | None = None,
    pair: Subject | None = None,
    relation: Relation = "averaged",
    members: Sequence[Subject] | None = None,
    serving: Any = None,
    domains: Mapping[str, Any] | None = None,
    journal: Journal | None = None,
    selection: Selection | None = None,
    name: str | None = None,
) -> Diagnosis:
    """Find what is wrong with the batch norms of a subject, and what it costs.

    The subject is left as it is, to the bit, whatever happens: everything is tried on a deep copy,
    and the random generators are put back.

    Args:
        model: A module; a state_dict; a program of `torch.export`; or the path of a checkpoint
            (`.safetensors`, or `.pt` of tensors alone), a `.pt2` program or an `.onnx` file.
        data: Batches of what the network was trained on, or is meant for: a loader, an iterable
            of batches, a Dataset, or a tensor, array, dict or pair (inputs, labels) of them.
            Without, only what the state alone shows is checked.
        purpose: What the subject is meant for: "infer", "train", "finetune" or "export".
        forward: Runs the model on one batch, for batches of other forms.
        batches: How many batches to take.
        batch_size: Rows of a batch when `data` is tensors.
        optimizer: The optimizer, to check which parameters it updates.
        pair: A second subject to compare with.
        relation: What `pair` is: the model whose weights were "averaged", another "rank" of the
            same training, or the source of what was "converted".
        members: The networks whose parameters were averaged into this one.
        serving: Batches of inference, when they are other than `data`.
        domains: Batches of each domain, by name.
        journal: What `bnkit.watch` wrote down.
        selection: Which rules to run and what to report.
        name: What to call the subject.

    Returns:
        The diagnosis: root causes first, and what could not be checked.

    Raises:
        SpecError: An unknown purpose or relation, or an option of another kind.
        InputError: A subject or data that cannot be read or run.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        >>> _ = model(torch.randn(64, 4))
        >>> [f.code for f in bnkit.diagnose(model, purpose="infer").errors]
        ['BN205', 'BN301']
    """
    _check_options(purpose, {"batches": batches, "batch_size": batch_size}, optimizer, domains)
    subject = opened(model)
    if isinstance(data, Iterator):
        data = list(Batches(data, most=batches))  # it is read more than once
    given = Given(data, forward, batches, batch_size)
    if isinstance(subject, nn.Module):
        evidence = of_module(subject, given, purpose)
        evidence = probe_more(evidence, subject, given, serving, domains)
        if optimizer is not None:
            evidence = replace(evidence, optimizer=read_optimizer(subject, optimizer))
    else:
        evidence = of_numbers(subject, purpose)
    if pair is not None:
        evidence = _beside(evidence, subject, opened(pair), relation, given)
    if members is not None:
        evidence = replace(evidence, members=_mixture(subject, evidence, members))
    missing = {**_ABSENT, **evidence.missing}
    evidence = replace(evidence, journal=journal, missing=missing)
    return judge(evidence, name or _title(model), selection)


def _check_options(purpose: str, counts: dict[str, Any], optimizer: Any, domains: Any) -> None:
    if purpose not in get_args(Purpose):
        msg = f"purpose: expected one of {', '.join(get_args(Purpose))}, got {purpose!r}."
        raise SpecError(msg)
    for name, got in counts.items():
        if not isinstance(got, int) or got < 1:
            msg = f"{name}: expected an integer of at least 1, got {got!r}."
            raise SpecError(msg)
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        msg = f"optimizer: expected one of torch.optim, got {type(optimizer).__name__}."
        raise SpecError(msg)
    if domains is not None and not isinstance(domains, Mapping):
        msg = f"domains: expected batches by name in a dict, got {type(domains).__name__}."
        raise SpecError(msg)


def _beside(
    evidence: Evidence, subject: Any, other: Any, relation: Relation, given: Given
) -> Evidence:
    evidence = replace(evidence, pair=compare(subject, other, relation))
    modules = isinstance(subject, nn.Module) and isinstance(other, nn.Module)
    if not modules or given.data is None or relation != "converted":
        return evidence
    batch = given.read(subject)[0]
    return replace(evidence, parity=parity(subject, other, batch))


def judge(evidence: Evidence, title: str, selection: Selection | None = None) -> Diagnosis:
    """Apply the rules to evidence.

    Args:
        evidence: What is known of the subject.
        title: What to call it.
        selection: Which rules to run and what to report.

    Returns:
        The diagnosis.
    """
    chosen = selection or Selection()
    findings, skipped, checked = examine(evidence, chosen)
    kept, gone = chosen.divide(findings)
    return Diagnosis(
        subject=title,
        purpose=evidence.purpose,
        findings=tuple(kept),
        suppressed=tuple(gone),
        skipped=tuple(skipped),
        checked=tuple(checked),
        records=evidence.records,
        probe=evidence.probe,
        environment=_environment(),
        subject_hash=_hash(evidence.records),
    )


def _mixture(subject: Any, evidence: Evidence, members: Sequence[Subject]) -> Mixture:
    names = {short_name(r.name): r.name for r in evidence.with_statistics}
    return read_mixture(state_of(subject), names, [state_of(opened(m)) for m in members])


def _title(model: Any) -> str:
    if isinstance(model, str | Path):
        return str(model)
    return "state_dict" if isinstance(model, Mapping) else type(model).__name__


def _environment() -> dict[str, str]:
    return {
        "bnkit": sys.modules["bnkit"].__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _hash(records: tuple[BatchNormRecord, ...]) -> str:
    digest = hashlib.sha256()
    for one in records:
        digest.update(f"{one.name}\0{one.eps}\0{one.ema_weight}\0{one.training}".encode())
        for values in (one.weight, one.bias, one.running_mean, one.running_var):
            digest.update(b"-" if values is None else values.tobytes())
    return digest.hexdigest()[:16]

"""Gather the evidence: read what there is, run what may be run, and say what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from bnkit.core.errors import BatchNormError, InputError
from bnkit.doctor.aside import set_aside
from bnkit.doctor.batches import Batch, Forward, read_batches
from bnkit.doctor.behaviour import Behaviour, observe
from bnkit.doctor.borders import border_errors
from bnkit.doctor.checkpoint import read_records
from bnkit.doctor.evidence import Evidence
from bnkit.doctor.facts import ModelFacts
from bnkit.doctor.find import lazy_batch_norms, read_module
from bnkit.doctor.finding import Purpose
from bnkit.doctor.flow import Flow
from bnkit.doctor.loader import read_loader
from bnkit.doctor.measured import Probe
from bnkit.doctor.probe import probe
from bnkit.doctor.program import Program, read_exported, read_onnx
from bnkit.doctor.read_model import built_in_forward, read_facts
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.trace import trace, trace_symbols
from bnkit.sources.checkpoint import read_tensors, tensors_within
from bnkit.sources.modules import check_values

Subject = nn.Module | ExportedProgram | Mapping[str, Any] | str | Path
_TRACED_ROWS = 2


@dataclass(frozen=True, slots=True)
class Given:
    """The data, and how to take batches of it.

    Attributes:
        data: As the user gave it.
        forward: Runs the model on one batch.
        batches: How many to take.
        batch_size: Rows of a batch when the data are tensors.
    """

    data: Any
    forward: Forward | None = None
    batches: int = 16
    batch_size: int = 64

    def read(self, model: nn.Module, data: Any = None) -> list[Batch]:
        """The batches, on the device of a model; of other data, when given."""
        return read_batches(
            self.data if data is None else data,
            limit=self.batches,
            batch_size=self.batch_size,
            forward=self.forward,
            model=model,
        )


def opened(subject: Subject) -> nn.Module | ExportedProgram | Mapping[str, Any] | Path:
    """What a path leads to; anything else is returned as it is.

    Args:
        subject: A module, a program, a state_dict or a path.

    Returns:
        The subject; the path itself for an ONNX file.

    Raises:
        InputError: A file that cannot be read, or something else altogether.
    """
    if isinstance(subject, Mapping):
        return tensors_within(subject)
    if isinstance(subject, nn.Module | ExportedProgram):
        return subject
    if not isinstance(subject, str | Path):
        msg = (
            f"diagnose: expected a module, a state_dict, an exported program or a path, got "
            f"{type(subject).__name__}."
        )
        raise InputError(msg)
    path = Path(subject)
    if path.suffix == ".onnx" and path.is_file():
        return path
    if path.suffix == ".pt2" and path.is_file():
        try:
            return torch.export.load(str(path))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            msg = f"{path}: expected a program of torch.export, got an unreadable file ({reason})."
            raise InputError(msg) from error
    return read_tensors(path)


def of_numbers(subject: ExportedProgram | Mapping[str, Any] | Path, purpose: Purpose) -> Evidence:
    """Evidence of a subject that is not run: a state_dict or an exported program.

    Args:
        subject: From `opened`.
        purpose: What it is meant for.

    Returns:
        The evidence.
    """
    reason = "only a module can be run"
    program: Program | None = None
    flow: Flow | None = None
    if isinstance(subject, ExportedProgram):
        program, records, flow = read_exported(subject)
    elif isinstance(subject, Path):
        program, records, flow = read_onnx(subject)
    else:
        records = read_records(subject)
    names: list[str] = ["probe", "behaviour", "loader", "optimizer"]
    missing = dict.fromkeys(names, reason)
    return Evidence(purpose, records, missing, flow=flow, program=program)


def of_module(model: nn.Module, given: Given, purpose: Purpose) -> Evidence:
    """Evidence of a module, and of its behaviour on batches when there are any.

    Args:
        model: The module; it is not changed.
        given: The data.
        purpose: What it is meant for.

    Returns:
        The evidence.

    Raises:
        InputError: The model has lazy layers or no numbers, cannot be copied, or fails on the
            batches.
    """
    check_values(model)
    records = read_module(model)
    missing: dict[str, str] = {}
    lazy = lazy_batch_norms(model)
    if lazy:
        names = ", ".join(lazy)
        msg = f"{names}: lazy layers have no size yet. Run one batch through the model first."
        raise InputError(msg)
    with set_aside(model) as copy:
        facts = read_facts(model, copy, records)
        if given.data is None:
            flow = _symbolic(copy, missing)
            facts = _with_borders(facts, copy, flow)
            return Evidence(purpose, _with_producers(records, flow, model), missing, facts, flow)
        batches = given.read(model)
        first = _smaller(batches[0])
        flow = _run(copy, first, batches[0])
        facts = _with_borders(facts, copy, flow)
        facts = replace(
            facts, built_in_forward=built_in_forward(lambda: _any_rows(copy, first, batches[0]))
        )
        measured = _measured(copy, records, batches, flow) if records else None
        if not records:
            missing["probe"] = "no batch norm module to measure"
        behaviour = _observed(copy, batches[0])
    return Evidence(
        purpose,
        _with_producers(records, flow, model),
        missing,
        facts,
        flow,
        measured,
        behaviour,
        read_loader(given.data),
    )


def probe_more(
    evidence: Evidence, model: nn.Module, given: Given, serving: Any, domains: Any
) -> Evidence:
    """Add the probes on the data of inference and of each domain.

    Args:
        evidence: From `of_module`.
        model: The module; it is not changed.
        given: How to take batches.
        serving: Data of inference, or None.
        domains: Data by name of the domain, or None.

    Returns:
        The evidence, with what was asked for.
    """
    if serving is None and domains is None:
        return evidence
    measured: dict[str, Probe] = {}
    with set_aside(model) as copy:
        for name, data in {**(domains or {}), "": serving}.items():
            if data is not None:
                measured[name] = _measured(copy, evidence.records, given.read(model, data), None)
    used = measured.pop("", None)
    return replace(evidence, serving=used, domains=measured or None)


def _with_borders(facts: ModelFacts, copy: nn.Module, flow: Flow | None) -> ModelFacts:
    return facts if flow is None else replace(facts, border_errors=border_errors(copy, flow))


def _measured(
    copy: nn.Module,
    records: tuple[BatchNormRecord, ...],
    batches: list[Batch],
    flow: Flow | None,
) -> Probe:
    squashed = frozenset() if flow is None else flow.squashed
    try:
        return probe(copy, records, batches, squashed)
    except BatchNormError:
        raise
    except Exception as error:
        raise InputError(_failed(copy, error)) from error


def _observed(copy: nn.Module, batch: Batch) -> Behaviour:
    try:
        return observe(copy, batch)
    except Exception as error:
        raise InputError(_failed(copy, error)) from error


def _symbolic(copy: nn.Module, missing: dict[str, str]) -> Flow | None:
    try:
        return trace_symbols(copy)
    except InputError as error:
        missing["flow"] = f"{error}; give batches"
        return None


def _run(copy: nn.Module, first: Batch, whole: Batch) -> Flow:
    for batch in (first, whole):  # some models need batches of one size
        try:
            given = (batch.args, dict(batch.kwargs), batch.raw)
            return trace(copy, batch.run, given)
        except Exception as error:
            problem = error
    raise InputError(_failed(copy, problem)) from problem


def _any_rows(copy: nn.Module, first: Batch, whole: Batch) -> None:
    try:
        first.run(copy)
    except Exception:
        whole.run(copy)


def _failed(model: nn.Module, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return (
        f"{type(model).__name__}: the model fails on these batches ({type(error).__name__}: "
        f"{reason}). Check their shape and dtype, or pass forward=lambda model, batch: ..."
    )


def _smaller(batch: Batch) -> Batch:
    """The first rows: enough to see the structure, and little to keep in memory."""
    return batch.first(_TRACED_ROWS)


def _with_producers(
    records: tuple[BatchNormRecord, ...], flow: Flow | None, model: nn.Module
) -> tuple[BatchNormRecord, ...]:
    if flow is None:
        return records
    before: dict[str, str] = {}
    for node in flow.batch_norms():
        producer = flow.before(node)
        if producer is not None and producer.layer:
            before.setdefault(node.layer, producer.layer)
    modules = dict(model.named_modules())
    found = []
    for record in records:
        name = before.get(record.name)
        parameters = list(modules[name].parameters()) if name in modules else []
        trainable = any(p.requires_grad for p in parameters) if parameters else None
        found.append(replace(record, producer=name, producer_trainable=trainable))
    return tuple(found)

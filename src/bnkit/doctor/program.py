"""Batch norms in exported programs: torch.export, fx graphs of operators, ONNX files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import fx
from torch.export import ExportedProgram

from bnkit.core.errors import InputError
from bnkit.doctor.checkpoint import read_records
from bnkit.doctor.flow import Flow, Node, kind_of
from bnkit.doctor.record import BatchNormRecord
from bnkit.doctor.trace import from_graph

_LEGIT_TRAINING = ("_native_batch_norm_legit", "_native_batch_norm_legit_functional")
_UPDATES = ("_batch_norm_with_update", "_batch_norm_with_update_functional")
_INFERENCE = ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramNorm:
    """One batch norm operator.

    Attributes:
        name: Of the buffers it reads, else of the node.
        op: The operator.
        training: Whether it normalizes with the statistics of the batch.
        has_statistics: Whether it was given running statistics.
        eps: Added to the variance.
        producer: The operation before it.
        alone: That operation feeds nothing else, so that folding is possible.
    """

    name: str
    op: str
    training: bool
    has_statistics: bool
    eps: float | None
    producer: str | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """The batch norms of a program.

    Attributes:
        format: "torch.export" or "onnx".
        norms: In order.
    """

    format: str
    norms: tuple[ProgramNorm, ...]


def read_exported(
    exported: ExportedProgram,
) -> tuple[Program, tuple[BatchNormRecord, ...], Flow]:
    """The batch norms of a program of `torch.export`.

    Args:
        exported: The program; it is only read.

    Returns:
        Its operators, a record for each that has statistics, and the flow.
    """
    signature = exported.graph_signature
    names = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    norms = tuple(
        _norm(node, names)
        for node in exported.graph.nodes
        if node.op == "call_function" and kind_of(_op(node)) == "batch_norm"
    )
    records = read_records(exported.state_dict)
    known = {n.name: n for n in norms}
    filled = [
        replace(r, eps=known[r.name].eps, training=known[r.name].training, kind=known[r.name].op)
        if r.name in known
        else r
        for r in records
    ]
    return Program("torch.export", norms), tuple(filled), from_graph(exported.graph, {})


def read_onnx(path: Path) -> tuple[Program, tuple[BatchNormRecord, ...], Flow]:
    """The batch norms of an ONNX file.

    Args:
        path: The file.

    Returns:
        Its operators, a record for each, and the flow.

    Raises:
        InputError: The package onnx is missing, or the file is damaged.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        msg = f"{path}: reading ONNX needs the package onnx. Install bnkit[onnx]."
        raise InputError(msg) from error
    try:
        model = onnx.load(str(path))
        tensors = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        msg = f"{path}: expected an ONNX model, got a file that cannot be read ({reason})."
        raise InputError(msg) from error
    made_by = {out: n for n in model.graph.node for out in n.output if out}
    uses = [i for n in model.graph.node for i in n.input] + [o.name for o in model.graph.output]
    norms, records = [], []
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            producer = made_by.get(node.input[0])
            alone = uses.count(node.input[0]) == 1
            norms.append(_onnx_norm(node, producer, tensors, alone=alone))
            records.append(_onnx_record(node, norms[-1], tensors))
    return Program("onnx", tuple(norms)), tuple(records), _onnx_flow(model.graph)


def _onnx_norm(node: Any, producer: Any, tensors: Any, *, alone: bool) -> ProgramNorm:
    values = {a.name: a for a in node.attribute}
    training = "training_mode" in values and values["training_mode"].i == 1
    live = [o for o in node.output[1:] if o]
    return ProgramNorm(
        name=node.name or node.output[0],
        op="BatchNormalization",
        training=training or bool(live),
        has_statistics=node.input[3] in tensors or training,
        eps=values["epsilon"].f if "epsilon" in values else 1e-5,
        producer=None if producer is None else producer.op_type,
        alone=alone,
    )


def _onnx_record(node: Any, norm: ProgramNorm, tensors: dict[str, Any]) -> BatchNormRecord:
    weight, bias, mean, var = (
        np.asarray(tensors[i], np.float64).reshape(-1) if i in tensors else None
        for i in node.input[1:5]
    )
    first = next((t for t in (mean, weight) if t is not None), np.zeros(0))
    kind = tensors[node.input[3]].dtype.name if node.input[3] in tensors else None
    return BatchNormRecord(
        name=norm.name,
        kind=norm.op,
        num_features=first.size,
        eps=norm.eps,
        weight=weight,
        bias=bias,
        running_mean=mean,
        running_var=var,
        statistics_dtype=kind,
        training=norm.training,
        tracks=norm.training,
    )


def _onnx_flow(graph: Any) -> Flow:
    ids: dict[str, int] = {}
    nodes: list[Node] = []
    constants = {i.name for i in graph.initializer}
    for value in graph.input:
        if value.name not in constants:
            ids[value.name] = len(nodes)
            nodes.append(Node(len(nodes), "input", "input"))
    for one in graph.node:
        inputs = tuple(ids[i] for i in one.input if i in ids)
        kind = "batch_norm" if one.op_type == "BatchNormalization" else kind_of(one.op_type)
        options = {"bias": 1.0} if kind in {"conv", "linear"} and len(one.input) > 2 else {}
        name = one.name or one.output[0]
        for out in one.output:
            ids[out] = len(nodes)
        nodes.append(Node(len(nodes), one.op_type, kind, name, inputs, None, options))
    outputs = frozenset(ids[o.name] for o in graph.output if o.name in ids)
    return Flow(tuple(nodes), outputs, "program")


def _op(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _norm(node: fx.Node, names: dict[str, str]) -> ProgramNorm:
    op = _op(node).partition(".")[0]
    schema = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given: dict[str, Any] = dict(zip(schema, node.args, strict=False)) | dict(node.kwargs)
    mean = given.get("running_mean")
    training = op in _LEGIT_TRAINING or op in _UPDATES
    if "training" in given or "train" in given:
        training = bool(given.get("training", given.get("train")))
    if op in _INFERENCE:
        training = False
    source = given.get("input")
    name = names.get(mean.name, "") if isinstance(mean, fx.Node) else ""
    producer = _op(source) if isinstance(source, fx.Node) and source.op == "call_function" else None
    return ProgramNorm(
        name=name.rpartition(".")[0] or node.name,
        op=op,
        training=training,
        has_statistics=isinstance(mean, fx.Node),
        eps=next((float(given[k]) for k in ("eps",) if k in given), None),
        producer=None if producer is None else producer.partition(".")[0],
        alone=isinstance(source, fx.Node) and len(source.users) == 1,
    )

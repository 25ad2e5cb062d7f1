"""ONNX: initialisers and constants of a graph and its subgraphs, and its batch norms.

The messages are read by their wire format, so the package `onnx` is not needed, and a hostile
model meets no code but this. External data may only be in the folder of the model.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from bnkit.formats.checkpoint import BatchNormEntry, Checkpoint, StoredTensor
from bnkit.formats.dtypes import SIZES, byte_count, decode
from bnkit.formats.mapped import Mapped, beside, map_file
from bnkit.formats.wire import Message, parse

_DTYPES = {
    **dict(enumerate(["float32", "uint8", "int8", "uint16", "int16", "int32", "int64"], 1)),
    **dict(enumerate(["string", "bool", "float16", "float64", "uint32", "uint64"], 8)),
    **dict(enumerate(["complex64", "complex128", "bfloat16", "float8_e4m3fn"], 14)),
    19: "float8_e5m2",
}
_UNREADABLE = {18: "float8_e4m3fnuz", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4"}
_GRAPH, _OPSETS, _FUNCTIONS = 7, 8, 25
_RAW, _EXTERNAL = 9, 1
_MAX_DEPTH = 16
_ROLES = ("weight", "bias", "running_mean", "running_var")
_EPS, _MOMENTUM = 1e-5, 0.9  # defaults of the operator in every opset
# TensorProto's field of unpacked numbers, and what one of them is
_TYPED = {
    **dict.fromkeys(["float32", "complex64"], (4, "float32")),
    **dict.fromkeys(["float64", "complex128"], (10, "float64")),
}
_VARINTS = {"int64": 7, "uint32": 11, "uint64": 11}
_INT32_DATA = 5


def is_onnx(source: Mapped) -> bool:
    """Recognise the format.

    Args:
        source: A file that may be a message of Protocol Buffers.

    Returns:
        Whether it has a version and a graph as ONNX stores them.

    Raises:
        CheckpointError: It is no message.
    """
    fields = parse(source, "model").fields
    graph, version = fields.get(_GRAPH, [0])[-1], fields.get(1, [b""])[-1]
    return isinstance(graph, memoryview) and isinstance(version, int)


def read_onnx(source: Mapped) -> Checkpoint:
    """Read a model.

    Args:
        source: The file.

    Returns:
        The checkpoint: initialisers, and Constant nodes by the name of their output; those of a
        subgraph may hide an outer name and are then prefixed by where they are. `nodes` in the
        metadata lists the nodes of the main graph with their attributes, `opset` the version of
        each domain.

    Raises:
        CheckpointError: The model is damaged, or a name is given twice.
    """
    model = parse(source, "model")
    graph = model.message(_GRAPH, "graph")
    if graph is None:
        raise source.error("model", "a graph", "none")
    tensors: dict[str, StoredTensor] = {}
    entries: list[BatchNormEntry] = []
    for place, one in _graphs(graph, "", 0):
        for name, tensor in _stored(one):
            key = name if name not in tensors or not place else f"{place}/{name}"
            if key in tensors:
                raise source.error(f"tensor {key!r:.120}", "names that differ", "this one twice")
            tensors[key] = _tensor(source, key, tensor)
        entries += _entries(one, tensors)
    opsets = model.messages(_OPSETS, "opset")
    metadata = {
        "ir_version": model.integer(1),
        "producer": model.text(2),
        "opset": {one.text(1): one.integer(2) for one in opsets},
        "functions": len(model.fields.get(_FUNCTIONS, [])),
        "nodes": [_described(node) for node in graph.messages(1, "node")],
    }
    return Checkpoint(source.path, "onnx", tensors, metadata, tuple(entries))


def _graphs(graph: Message, place: str, depth: int) -> Iterator[tuple[str, Message]]:
    """A graph, then those in its nodes (If, Loop, Scan)."""
    graph.source.named(place, "names of subgraphs")
    if depth > _MAX_DEPTH:
        raise graph.source.error(place, f"at most {_MAX_DEPTH} graphs in graphs", "more")
    yield place, graph
    for number, node in enumerate(graph.messages(1, "node")):
        for attribute in node.messages(5, "attribute"):
            inner = attribute.messages(6, "subgraph") + attribute.messages(11, "subgraph")
            for one in inner:
                where = f"{node.text(3) or number}.{attribute.text(1)}"
                yield from _graphs(one, f"{place}/{where}".lstrip("/"), depth + 1)


def _stored(graph: Message) -> Iterator[tuple[str, Message]]:
    for tensor in graph.messages(5, "initializer"):
        yield tensor.text(8), tensor
    for node in graph.messages(1, "node"):
        if node.text(4) == "Constant" and not node.text(7):
            for attribute in node.messages(5, "attribute"):
                value = attribute.message(5, "constant")
                if value is not None and node.texts(2):
                    yield node.texts(2)[0], value


def _tensor(source: Mapped, name: str, tensor: Message) -> StoredTensor:
    place, code = f"tensor {name!r}", tensor.integer(2)
    dtype = _DTYPES.get(code) or _UNREADABLE.get(code)
    if dtype is None:
        raise source.error(place, "a dtype of ONNX", f"number {code}")
    shape = tensor.integers(1)
    if dtype in SIZES:
        byte_count(source, place, dtype, shape)
    return StoredTensor(name, dtype, shape, partial(_load, source, place, tensor, dtype, shape))


def _load(
    source: Mapped, place: str, tensor: Message, dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
    if dtype == "string":
        array = np.empty(len(tensor.fields.get(6, [])), dtype=object)
        if array.size != byte_count(source, place, "uint8", shape):
            raise source.error(place, f"strings of shape {shape}", f"{array.size} strings")
        array[:] = [bytes(one) for one in tensor.fields.get(6, []) if isinstance(one, memoryview)]
        return array.reshape(shape)
    if dtype not in SIZES:
        raise source.error(place, f"a dtype of {', '.join(SIZES)}", dtype)
    if tensor.integer(14) == _EXTERNAL:
        return _external(source, place, tensor, dtype, shape)
    if _RAW in tensor.fields:
        return decode(source, place, tensor.data(_RAW), dtype, shape)
    if dtype in _TYPED:
        return decode(source, place, tensor.numbers(*_TYPED[dtype]), dtype, shape)
    return decode(source, place, _varints(source, place, tensor, dtype), dtype, shape)


def _varints(source: Mapped, place: str, tensor: Message, dtype: str) -> bytes:
    """Numbers that are stored one by one; 16-bit floats as their bits."""
    stored = {"bool": "uint8", "float16": "uint16", "bfloat16": "uint16"}.get(dtype, dtype)
    if dtype.startswith("float8"):
        stored = "uint8"
    values = tensor.integers(_VARINTS.get(dtype, _INT32_DATA))
    if stored == "uint64":
        values = tuple(value & (1 << 64) - 1 for value in values)
    limits = np.iinfo(stored)
    if any(not limits.min <= value <= limits.max for value in values):
        raise source.error(place, f"values of {dtype}", "a larger one")
    return np.array(values, dtype=np.dtype(stored).newbyteorder("<")).tobytes()


def _external(
    source: Mapped, place: str, tensor: Message, dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
    where = {one.text(1): one.text(2) for one in tensor.messages(13, "external data")}
    wanted = byte_count(source, place, dtype, shape)
    try:
        offset, length = int(where.get("offset", 0)), int(where.get("length", wanted))
    except ValueError as error:
        raise source.error(place, "an offset and a length", f"{where!r:.200}") from error
    if length != wanted:
        raise source.error(place, f"{wanted} bytes for {dtype} {shape}", f"{length}")
    other = map_file(beside(source.path, where.get("location", "")))
    return decode(other, place, other.take(offset, length, place), dtype, shape)


def _described(node: Message) -> dict[str, Any]:
    return {
        "op": node.text(4),
        "domain": node.text(7),
        "name": node.text(3),
        "inputs": node.texts(1),
        "outputs": node.texts(2),
        "attributes": {one.text(1): _attribute(one) for one in node.messages(5, "attribute")},
    }


def _attribute(attribute: Message) -> Any:
    """Numbers and text; what is a tensor or a graph is None here."""
    fields = attribute.fields
    if 2 in fields:
        return attribute.float32(2)
    if 3 in fields:
        return attribute.integer(3)
    if 4 in fields:
        return bytes(attribute.data(4)).decode("utf-8", "replace")
    if 7 in fields:
        return np.frombuffer(attribute.numbers(7, "float32"), dtype="<f4").tolist()
    if 8 in fields:
        return list(attribute.integers(8))
    return None


def _entries(graph: Message, tensors: dict[str, StoredTensor]) -> Iterator[BatchNormEntry]:
    same = {
        node.texts(2)[0]: node.texts(1)[0]
        for node in graph.messages(1, "node")
        if node.text(4) == "Identity" and node.texts(1) and node.texts(2)
    }
    for node in graph.messages(1, "node"):
        if node.text(4) != "BatchNormalization" or node.text(7) not in ("", "ai.onnx"):
            continue
        described = _described(node)
        names = {}
        for role, name in zip(_ROLES, described["inputs"][1:], strict=False):
            origin = _origin(name, same, tensors)
            if origin in tensors:
                names[role] = origin
        attributes = described["attributes"]
        eps, keep = attributes.get("epsilon", _EPS), attributes.get("momentum", _MOMENTUM)
        name = described["name"] or next(iter(described["outputs"]), "")
        about = {**attributes, "inputs": described["inputs"], "outputs": described["outputs"]}
        yield BatchNormEntry(
            name,
            names,
            float(eps) if isinstance(eps, int | float) else None,
            1 - float(keep) if isinstance(keep, int | float) else None,
            1,
            about,
        )


def _origin(name: str, same: dict[str, str], tensors: dict[str, StoredTensor]) -> str:
    """The tensor that a chain of Identity nodes copies."""
    for _ in range(_MAX_DEPTH):
        if name in tensors or name not in same:
            break
        name = same[name]
    return name

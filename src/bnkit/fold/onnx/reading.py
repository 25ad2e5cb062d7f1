"""An ONNX model from a file, bytes or memory, with everything that it names beside itself read.

Files are not trusted: nothing outside of the model's own folder is opened, and nothing is
allocated that the files do not hold.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from bnkit.core.errors import InputError

LARGEST = 2**31 - 1  # bytes: what protobuf can hold in one message
_OVERLAP = 2  # tied weights may share bytes, but a small file may not become a large model
_HALF_BYTES = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
_KEYS = frozenset({"location", "offset", "length", "checksum"})


@dataclass(frozen=True, slots=True)
class Source:
    """A model and where it comes from.

    Attributes:
        name: For messages: the path, or "the model".
        model: A copy of its own, with all data inside.
        external: Whether data was in other files.
    """

    name: str
    model: ModelProto
    external: bool


def read_source(source: "str | os.PathLike[str] | bytes | ModelProto") -> Source:
    """Read a model; what was given is not changed.

    Args:
        source: The path of an `.onnx` file, its bytes, or a model in memory.

    Returns:
        The model.

    Raises:
        InputError: It is not there, is no ONNX model, or its data is not where it says.
    """
    if isinstance(source, ModelProto):
        name, folder = "the model", None
        model = _parse(_serialized(source), name)
    elif isinstance(source, bytes):
        name, folder, model = "the model", None, _parse(source, "the model")
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        name, folder = repr(str(path)), path.parent
        model = _parse(_bytes(path, name), name)
    else:
        msg = f"fold_onnx: expected a path, bytes or a ModelProto, got {type(source).__name__}."
        raise InputError(msg)
    if not model.graph.node:
        msg = f"{name}: expected an ONNX model, got one whose graph has no nodes."
        raise InputError(msg)
    if not all(isinstance(text, str) for text in _texts(model)):
        msg = f"{name}: expected names in UTF-8, got other bytes: the file is damaged."
        raise InputError(msg)
    return Source(name, model, _take_in(model, folder, name))


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initialisers and attributes, those of subgraphs too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in subgraphs(attribute):
            yield from _graph_tensors(graph)


def subgraphs(attribute: AttributeProto) -> Iterator[GraphProto]:
    """The graphs that an attribute holds."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _texts(model: ModelProto) -> Iterator[Any]:
    """Every name; protobuf gives one that is no text as bytes."""
    yield from (o.domain for o in model.opset_import)
    yield from _graph_texts(model.graph)
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
        for node in function.node:
            yield from _node_texts(node)


def _graph_texts(graph: GraphProto) -> Iterator[Any]:
    yield graph.name
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
    yield from (t.name for t in graph.initializer)
    yield from (s.values.name for s in graph.sparse_initializer)
    for node in graph.node:
        yield from _node_texts(node)


def _node_texts(node: NodeProto) -> Iterator[Any]:
    yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for attribute in node.attribute:
        yield attribute.name
        yield attribute.t.name
        yield from (e.value for e in attribute.t.external_data)
        for graph in subgraphs(attribute):
            yield from _graph_texts(graph)


def _bytes(path: Path, name: str) -> bytes:
    expected = f"{name}: expected an ONNX file"
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no file of that name"
        msg = f"{expected}, got {got}."
        raise InputError(msg)
    try:
        size = path.stat().st_size
        if size > LARGEST:
            msg = f"{expected} of at most 2 GiB, got {size} bytes: protobuf cannot hold more."
            raise InputError(msg)
        return path.read_bytes()
    except OSError as error:
        msg = f"{expected}, got: {error.strerror or error}."
        raise InputError(msg) from error


def _serialized(model: ModelProto) -> bytes:
    try:
        return model.SerializeToString()
    except (EncodeError, ValueError, RecursionError) as error:
        msg = "the model: expected at most 2 GiB and graphs not too deep within each other."
        raise InputError(msg) from error


def _parse(data: bytes, name: str) -> ModelProto:
    try:
        return ModelProto.FromString(data)
    except (DecodeError, RecursionError, ValueError) as error:
        msg = f"{name}: expected an ONNX model, got bytes that are damaged or of another format."
        raise InputError(msg) from error


def _take_in(model: ModelProto, folder: Path | None, name: str) -> bool:
    """Move external data into the model; whether there was any."""
    left: dict[Path, int] = {}
    found = False
    total = 0
    for tensor in tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        found = True
        label = f"{name}: tensor {tensor.name!r}"
        path, offset, length = _location(tensor, folder, label)
        budget = left.setdefault(path, _OVERLAP * path.stat().st_size)
        total += length
        if length > budget or total > LARGEST:
            msg = f"{label}: expected tensors no larger than {path.name!r}, got more bytes in all."
            raise InputError(msg)
        left[path] = budget - length
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = data
    return found


def _location(tensor: TensorProto, folder: Path | None, label: str) -> tuple[Path, int, int]:
    """Where the data of a tensor is: a file within the folder, the first byte, and how many."""
    if folder is None:
        msg = f"{label}: its data is in another file. Pass the path of the model instead."
        raise InputError(msg)
    entries = {e.key: e.value for e in tensor.external_data}
    where = entries.get("location", "")
    path = _confined(folder, where)
    if path is None or not entries.keys() <= _KEYS:
        msg = (
            f"{label}: expected its data in a file within the folder of the model, "
            f"got the location {where[:200]!r}."
        )
        raise InputError(msg)
    size, wanted = path.stat().st_size, _expected_bytes(tensor, label)
    offset, length = (_count(entries.get(k), d) for k, d in (("offset", 0), ("length", wanted)))
    if offset is None or length is None or length != wanted or offset + length > size:
        msg = (
            f"{label}: expected {wanted} bytes in {path.name!r} ({size} bytes), got the offset "
            f"{entries.get('offset', '0')[:40]} and length {entries.get('length', wanted)}."
        )
        raise InputError(msg)
    return path, offset, length


def _confined(folder: Path, where: str) -> Path | None:
    """The file, if it is one within the folder: no way up, no root, no link that leads out."""
    parts = Path(where).parts
    if not where or "\0" in where or "\\" in where or ".." in parts or Path(where).is_absolute():
        return None
    try:
        root = folder.resolve(strict=True)
        path = (root / where).resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return path if path.is_relative_to(root) and path.is_file() else None


def _expected_bytes(tensor: TensorProto, label: str) -> int:
    count = element_count(tensor)
    try:
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError, ValueError):
        size = 0
    if count is None or size == 0 or tensor.data_type == TensorProto.STRING:
        msg = f"{label}: expected a known type and shape, got {tensor.data_type}, {_dims(tensor)}."
        raise InputError(msg)
    return (count * (4 if tensor.data_type in _HALF_BYTES else 8 * size) + 7) // 8


def element_count(tensor: TensorProto) -> int | None:
    """The product of its dimensions; None if one is negative."""
    count = 1
    for dim in tensor.dims:
        count *= dim
        if dim < 0:
            return None
    return count


def _dims(tensor: TensorProto) -> str:
    return "x".join(str(d) for d in list(tensor.dims)[:8]) or "a scalar"


def _count(text: str | None, default: int) -> int | None:
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

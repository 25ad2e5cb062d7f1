"""What the folding of ONNX files reads: constants, and batch norms in their inference form."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import numpy as xp
from onnx import TensorProto, helper, numpy_helper

from bnkit.core.errors import InputError
from bnkit.core.fold import Affine, inference_affine
from bnkit.fold.onnx.reading import element_count
from bnkit.fold.onnx.scopes import Document, Node, Scope

Action = Literal["folded", "kept", "refused"]

FIRST_OPSET = 7
_FIRST_TRAINING_MODE = 14
_LAST_SPATIAL = 8
_DEPTH = 32  # constants behind this many Identity nodes and the like are not looked for
_LARGEST_EXPANSION = 2**24
_FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)


class NotFolded(Exception):  # noqa: N818  a verdict on one batch norm, not an error of the caller
    """Why a batch norm stays.

    Attributes:
        action: "refused" where folding would be wrong, "kept" where there is nothing to fold into.
        reason: Half a sentence.
    """

    def __init__(self, reason: str, action: Action = "refused") -> None:
        super().__init__(reason)
        self.reason = reason
        self.action: Action = action


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A BatchNormalization in inference form with constant parameters.

    Attributes:
        node: The node.
        affine: What it does to a channel, in float64.
        weight: Its scale as stored, shape `(c,)`.
        bias: Its bias as stored, shape `(c,)`.
    """

    node: Node
    affine: Affine
    weight: np.ndarray
    bias: np.ndarray


def read_norm(document: Document, node: Node) -> Norm:
    """Read a batch norm.

    Args:
        document: The model.
        node: A BatchNormalization.

    Returns:
        Its numbers.

    Raises:
        NotFolded: It is in training form, or its parameters are not known before the model runs.
        InputError: Its parameters do not fit each other.
    """
    label = f"node {node.label!r}"
    if len(node.proto.input) != 5 or not all(node.proto.input):
        msg = f"{label}: expected the five inputs of a batch norm, got {len(node.proto.input)}"
        raise InputError(msg)
    _check_form(document, node)
    names = ("scale", "B", "input_mean", "input_var")
    weight, bias, mean, var = (
        floats(document, node, 1 + i, f"its {name}") for i, name in enumerate(names)
    )
    shapes = {a.shape for a in (weight, bias, mean, var)}
    if len(shapes) != 1:
        msg = f"{label}: expected parameters of one shape, got {_shapes(weight, bias, mean, var)}"
        raise InputError(msg)
    if weight.ndim != 1:
        if document.opset <= _LAST_SPATIAL and not node.attribute("spatial", 1):
            reason = "spatial=0: it has statistics for every position, and weights are per channel"
            raise NotFolded(reason)
        msg = f"{label}: expected parameters of shape (channels,), got {weight.shape}"
        raise InputError(msg)
    eps = node.attribute("epsilon", 1e-5)
    try:
        affine = inference_affine(xp, (mean, var), weight, bias, eps)
    except InputError as error:
        raise NotFolded(f"its {error}") from error
    return Norm(node, affine, weight, bias)


def _check_form(document: Document, node: Node) -> None:
    opset = document.opset
    if opset < FIRST_OPSET:
        reason = f"opset {opset}: convert the model to opset 7 or later with onnx.version_converter"
        raise NotFolded(reason)
    if opset >= _FIRST_TRAINING_MODE and node.attribute("training_mode", 0):
        raise NotFolded("training_mode=1: it normalizes with the batch. Export in eval mode")
    if not node.sole_output:
        given = sum(1 for o in node.proto.output if o)
        raise NotFolded(f"training form: it has {given} outputs. Export in eval mode")


def floats(document: Document, node: Node, index: int, what: str) -> np.ndarray:
    """A constant input of a floating type.

    Args:
        document: The model.
        node: Whose input.
        index: Which one.
        what: For messages, such as "its bias".

    Returns:
        The values.

    Raises:
        NotFolded: It is no constant, or of another type.
    """
    values = constant(document, node.scope, node.input(index), what)
    if helper.np_dtype_to_tensor_dtype(values.dtype) not in _FLOATS:
        raise NotFolded(f"{what} is {values.dtype}, not a floating type that can be scaled")
    return values


def constant(document: Document, scope: Scope, name: str, what: str, depth: int = 0) -> np.ndarray:
    """The value of a name that does not depend on the input of the model.

    Initialisers and Constant nodes, also of graphs around, and what Identity, Transpose, Cast,
    Shape and Expand make of them.

    Args:
        document: The model.
        scope: Where the name is read.
        name: The name.
        what: For messages.
        depth: Nodes passed so far.

    Returns:
        The values, not to be written into.

    Raises:
        NotFolded: It is no constant.
        InputError: A stored tensor holds more or less than its shape says.
    """
    owner = scope.owner(name)
    if owner is None or depth > _DEPTH:
        raise NotFolded(f"{what} comes from too long a chain of nodes")
    if name in owner.initializers:
        if document.overridable(owner, name):
            raise NotFolded(f"{what} ({name!r}) is a default that callers may override")
        return stored_values(owner.initializers[name], what)
    producer = owner.producers.get(name)
    if producer is None:
        sort = "an input of the graph" if name in owner.inputs else "a sparse initialiser"
        raise NotFolded(f"{what} ({name!r}) is {sort}")
    if producer.op == "Constant":
        return _constant_node(producer, what)
    if producer.op not in _EVALUATED or not producer.sole_output:
        raise NotFolded(f"{what} is computed by {producer.op} {producer.label!r} when it runs")
    count = 1 if producer.op == "CastLike" else len(producer.proto.input)
    inputs = [constant(document, owner, producer.input(i), what, depth + 1) for i in range(count)]
    try:
        return _EVALUATED[producer.op](producer, *inputs)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        msg = f"node {producer.label!r}: {producer.op} cannot take its constants ({error})"
        raise InputError(msg) from error


def stored_values(tensor: TensorProto, what: str) -> np.ndarray:
    """The values of a stored tensor; the file has to hold as many as its shape says.

    Args:
        tensor: The tensor.
        what: For messages.

    Returns:
        The values.

    Raises:
        NotFolded: It is of a kind that is not read.
        InputError: It holds more or less than its shape says.
    """
    count = element_count(tensor)
    label = f"initialiser {tensor.name!r}" if tensor.name else what
    if tensor.data_location == TensorProto.EXTERNAL or tensor.HasField("segment"):
        raise NotFolded(f"{what} is stored in segments")
    try:
        size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if tensor.HasField("raw_data"):
            stored = len(tensor.raw_data) / max(size, 1)
        else:
            field = helper.tensor_dtype_to_field(tensor.data_type)
            stored = len(getattr(tensor, field))
    except (KeyError, TypeError, ValueError) as error:
        raise NotFolded(f"{what} has the unknown type {tensor.data_type}") from error
    if count is None or stored != count:
        msg = f"{label}: expected {count} values of shape {list(tensor.dims)[:8]}, got {stored:g}"
        raise InputError(msg)
    return numpy_helper.to_array(tensor)


def _constant_node(node: Node, what: str) -> np.ndarray:
    for attribute in node.proto.attribute:
        if attribute.name == "value":
            return stored_values(attribute.t, what)
        if attribute.name in ("value_float", "value_floats"):
            return np.asarray(helper.get_attribute_value(attribute), np.float32)
        if attribute.name in ("value_int", "value_ints"):
            return np.asarray(helper.get_attribute_value(attribute), np.int64)
    raise NotFolded(f"{what} is a Constant of a kind that is not read")


def _identity(node: Node, values: np.ndarray) -> np.ndarray:
    del node
    return values


def _transpose(node: Node, values: np.ndarray) -> np.ndarray:
    perm = node.attribute("perm", list(range(values.ndim))[::-1])
    return values.transpose(perm)


def _cast(node: Node, values: np.ndarray) -> np.ndarray:
    return values.astype(helper.tensor_dtype_to_np_dtype(node.attribute("to", 0)))


def _shape(node: Node, values: np.ndarray) -> np.ndarray:
    start, end = node.attribute("start", 0), node.attribute("end", values.ndim)
    return np.asarray(values.shape[start:end], np.int64)


def _expand(node: Node, values: np.ndarray, shape: np.ndarray) -> np.ndarray:
    del node
    target = [int(d) for d in shape.reshape(-1)]
    if min(target, default=1) < 0 or np.prod(target, dtype=float) > _LARGEST_EXPANSION:
        msg = f"a shape of {target[:8]}"
        raise ValueError(msg)
    return np.broadcast_to(values, np.broadcast_shapes(values.shape, tuple(target)))


def _shapes(*arrays: np.ndarray) -> str:
    return ", ".join(str(a.shape) for a in arrays)


# CastLike gives the type that its reader asks for, so the reader casts.
_EVALUATED: dict[str, Any] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Cast": _cast,
    "CastLike": _identity,
    "Shape": _shape,
    "Expand": _expand,
}

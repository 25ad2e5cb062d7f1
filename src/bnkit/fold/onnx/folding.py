"""Folding every batch norm of a model: into the node before it, else into the one behind it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import numpy as xp

from bnkit.core.errors import InputError
from bnkit.core.fold import Affine, FoldedMap, border_error, compose, fold_left, fold_right
from bnkit.fold.onnx.linear import Linear, put_linear, read_linear, round_to, rounded_linear
from bnkit.fold.onnx.norms import Action, Norm, NotFolded, read_norm
from bnkit.fold.onnx.scopes import STANDARD, Document, Node
from bnkit.fold.onnx.walking import NORM, Way, way_back, way_on

Side = Literal["left", "right", "norm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRecord:
    """What became of one BatchNormalization.

    Attributes:
        name: Of the node, or of its output where the node has none.
        graph: Which graph it is in; "" for the model's own.
        action: "folded", "kept" (nothing beside it can take it) or "refused" (it would be wrong).
        into: The node that took it, as "Conv 'name'".
        side: Where that node stands: "left" of it, "right" of it, or "norm" for a batch norm
            before it.
        reason: Why it was not folded.
    """

    name: str
    graph: str
    action: Action
    into: str | None = None
    side: Side | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values that strict JSON can hold."""
        return {n: getattr(self, n) for n in self.__slots__}

    def __str__(self) -> str:
        where = f"{self.graph}/{self.name}" if self.graph else self.name
        if self.action == "folded":
            side = "behind" if self.side == "right" else "before"
            return f"{where}: folded into {self.into} {side} it"
        return f"{where}: {self.action}: {self.reason}"


def fold_document(document: Document) -> tuple[OnnxRecord, ...]:
    """Fold what can be folded, and commit it.

    Args:
        document: Is changed.

    Returns:
        A record for each batch norm, in the order of the graphs.

    Raises:
        InputError: A node contradicts itself, such as weights that do not fit its channels.
    """
    nodes = document.nodes(NORM)
    records = {node: _attempt(document, node, fold_left_of, "left") for node in nodes}
    for node, before in records.items():
        if before.action != "folded":
            behind = _attempt(document, node, fold_right_of, "right")
            records[node] = behind if behind.action == "folded" else _neither(before, behind)
    document.commit()
    return (*records.values(), *_in_functions(document))


def fold_left_of(document: Document, node: Node) -> Node:
    """Fold a batch norm into the linear node or batch norm before it.

    Args:
        document: Is changed.
        node: The batch norm.

    Returns:
        The node that took it.

    Raises:
        NotFolded: It stays; nothing was changed.
    """
    norm = read_norm(document, node)
    way = way_back(document, norm)
    scale, shift = norm.affine
    constants = []
    for addend in way.addends:
        constants.append(addend.changed(scale, shift))
        shift = np.zeros_like(shift)
    put = (_prepare_merge if way.target.op == NORM else _prepare_left)(
        document, way, Affine(scale, shift)
    )
    for addend, values in zip(way.addends, constants, strict=True):
        addend.put(document, values)
    put()
    document.rename_output(node.scope.producers[node.input(0)], node.proto.output[0])
    document.remove(node)
    return way.target


def fold_right_of(document: Document, node: Node) -> Node:
    """Fold a batch norm into the linear node behind it.

    Args:
        document: Is changed.
        node: The batch norm.

    Returns:
        The node that took it.

    Raises:
        NotFolded: It stays; nothing was changed.
    """
    norm = read_norm(document, node)
    way = way_on(document, norm)
    target = way.target
    linear = read_linear(document, target, way.channels)
    if target.input(1 - linear.index if target.op == "MatMul" else 0) != way.name:
        raise NotFolded(f"{target.op} {target.label!r} does not take it as its value")
    if target.op == "Gemm" and target.attribute("transA", 0):
        raise NotFolded(f"Gemm {target.label!r} takes it transposed: its channels are the rows")
    affine = _repeated(norm, linear, way)
    _check_border(linear, affine)
    folded = rounded_linear(linear, _fold(fold_right, linear, affine))
    put_linear(document, linear, folded)
    given = node.proto.output[0]
    (reader,) = node.scope.uses[given]
    document.set_input(reader, list(reader.proto.input).index(given), node.input(0))
    document.remove(node)
    return target


def _attempt(
    document: Document,
    node: Node,
    fold: Callable[[Document, Node], Node],
    side: Side,
) -> OnnxRecord:
    name, graph = node.label, node.scope.path
    try:
        taken = fold(document, node)
    except NotFolded as error:
        return OnnxRecord(name=name, graph=graph, action=error.action, reason=error.reason)
    where: Side = "norm" if taken.op == NORM else side
    into = f"{taken.op} {taken.label!r}"
    return OnnxRecord(name=name, graph=graph, action="folded", into=into, side=where)


def _neither(before: OnnxRecord, behind: OnnxRecord) -> OnnxRecord:
    """One record of two attempts that failed, with the reason of each."""
    reason = before.reason
    if behind.reason != reason:
        reason = f"{reason}; and {behind.reason}"
    action: Action = "refused" if "refused" in (before.action, behind.action) else "kept"
    return OnnxRecord(name=before.name, graph=before.graph, action=action, reason=reason)


def _prepare_left(document: Document, way: Way, affine: Affine) -> Callable[[], None]:
    linear = read_linear(document, way.target, way.channels)
    folded = rounded_linear(linear, _fold(fold_left, linear, affine))
    return lambda: put_linear(document, linear, folded)


def _prepare_merge(document: Document, way: Way, affine: Affine) -> Callable[[], None]:
    """Into the weight and bias of a batch norm before: `(w n + b) s + t = (w s) n + (b s + t)`."""
    node = way.target
    if way.channels.axis != 1:
        raise NotFolded(f"{NORM} {node.label!r} before it has its channels on another axis")
    try:
        first = read_norm(document, node)
    except NotFolded as error:
        raise NotFolded(f"{NORM} {node.label!r} before it: {error.reason}") from error
    if first.weight.shape != affine.scale.shape:
        msg = f"node {node.label!r}: expected {affine.scale.shape[0]} channels, as behind it"
        raise InputError(msg)
    own = Affine(first.weight.astype(np.float64), first.bias.astype(np.float64))
    both = compose(own, affine)
    weight = round_to(both.scale, first.weight.dtype, node)
    bias = round_to(both.shift, first.bias.dtype, node)

    def put() -> None:
        for index, values in ((1, weight), (2, bias)):
            hint = f"{node.input(index)}_folded"
            document.set_input(node, index, document.add_constant(node.scope, hint, values))

    return put


def _fold(how: Callable[..., FoldedMap], linear: Linear, affine: Affine) -> FoldedMap:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return how(xp, linear.weight, linear.bias, affine, linear.layout)
    except InputError as error:
        msg = f"node {linear.node.label!r}: {error}"
        raise InputError(msg) from error


def _repeated(norm: Norm, linear: Linear, way: Way) -> Affine:
    """The affine form with one entry per input of the linear node: Flatten repeats channels."""
    count = norm.affine.scale.shape[0]
    columns = linear.layout.in_channels(linear.weight.shape)
    if not way.channels.repeated or columns % count:
        return norm.affine
    return Affine(*(np.repeat(v, columns // count) for v in norm.affine))


def _check_border(linear: Linear, affine: Affine) -> None:
    """Refuse a shift that not every position of a convolution would see."""
    node = linear.node
    if not np.any(affine.shift) or node.op not in {"Conv", "ConvTranspose"}:
        return
    kernel = linear.weight.shape[2:]
    one_tap = all(k == 1 for k in kernel)
    padded = any(node.attribute("pads", [0]))
    same = node.attribute("auto_pad", "NOTSET") not in {"NOTSET", "VALID", ""}
    if node.op == "ConvTranspose":
        strides = any(s != 1 for s in node.attribute("strides", [1]))
        enlarged = any(node.attribute("output_padding", [0])) or node.attribute("output_shape", [])
        if not one_tap or strides or padded or same or enlarged:
            reason = f"{node.op} {node.label!r} does not give its shift to every position alike"
            raise NotFolded(reason, "kept")
    elif padded or (same and not one_tap):
        worst = border_error(xp, linear.weight, affine.shift, linear.layout)
        reason = f"{node.op} {node.label!r} behind it pads with zeros: the border would be off by "
        raise NotFolded(f"{reason}up to {worst:.2g}", "kept")


def _in_functions(document: Document) -> list[OnnxRecord]:
    reason = "it is inside a function: inline it first with onnx.inliner.inline_local_functions"
    return [
        OnnxRecord(
            name=node.name or (list(node.output) or [NORM])[0],
            graph=f"function {function.name}",
            action="refused",
            reason=reason,
        )
        for function in document.model.functions
        for node in function.node
        if node.op_type == NORM and node.domain in STANDARD
    ]

"""From a batch norm to the node that can take it, past nodes that only move or add to channels."""

from dataclasses import dataclass, replace

from bnkit.core.errors import InputError
from bnkit.fold.onnx.linear import LINEAR_OPS, Addend, Channels, read_addend
from bnkit.fold.onnx.norms import Norm, NotFolded, constant
from bnkit.fold.onnx.scopes import Document, Node

_STEPS = 64  # nodes between a batch norm and what takes it
NORM = "BatchNormalization"
_MOVING = frozenset({"Identity", "Dropout", "Transpose"})
_ADDING = frozenset({"Add", "Sub"})
_FIRST_DROPOUT_WITH_MODE = 12


@dataclass(frozen=True, slots=True)
class Way:
    """How a batch norm reaches a node.

    Attributes:
        target: The node.
        channels: Where the channels are in what goes between it and its neighbour.
        name: What goes between them.
        addends: Constants that are added on the way, the one nearest to the batch norm first.
    """

    target: Node
    channels: Channels
    name: str
    addends: tuple[Addend, ...] = ()


def way_back(document: Document, norm: Norm) -> Way:
    """The node before a batch norm that can take it.

    Args:
        document: The model.
        norm: The batch norm.

    Returns:
        The way to a linear node or another batch norm.

    Raises:
        NotFolded: There is none, or somebody else reads what lies between.
    """
    count = norm.affine.scale.shape[0]
    reader, name, channels = norm.node, norm.node.input(0), Channels(1)
    addends: list[Addend] = []
    between: list[tuple[Node, str]] = []
    for _ in range(_STEPS):
        node = _source(reader, name)
        between.append((reader, name))
        if node.op in _ADDING or node.op == "MatMul":
            channels = _with_rank(document, node, name, channels)
        if node.op in LINEAR_OPS or node.op == NORM:
            for one in between:
                _check_sole(*one)
            return Way(node, channels, name, tuple(addends))
        reader = node
        if node.op in _ADDING:
            addends.append(read_addend(document, node, "", channels, count))
            name = node.input(1 - addends[-1].index)
        else:
            channels, name = _moved(document, node, channels, back=True), node.input(0)
    raise NotFolded(f"nothing that could take it within {_STEPS} nodes before it", "kept")


def way_on(document: Document, norm: Norm) -> Way:
    """The node behind a batch norm that can take it.

    Args:
        document: The model.
        norm: The batch norm.

    Returns:
        The way to a linear node.

    Raises:
        NotFolded: There is none, or somebody else reads what lies between.
    """
    name, channels, giver = norm.node.proto.output[0], Channels(1), norm.node
    for _ in range(_STEPS):
        node = _reader(giver, name)
        if node.op in LINEAR_OPS:
            if node.op == "MatMul":
                channels = _with_rank(document, node, name, channels)
            return Way(node, channels, name)
        channels = _moved(document, node, channels, back=False)
        giver, name = node, node.proto.output[0]
    raise NotFolded(f"nothing that could take it within {_STEPS} nodes behind it", "kept")


def _source(reader: Node, name: str) -> Node:
    """What gives a value, if it is of use."""
    scope = reader.scope
    if name not in scope.uses:
        raise NotFolded("its input comes from outside of its branch or loop body")
    node = scope.producers.get(name)
    if node is None:
        raise NotFolded("its input is an input of the graph", "kept")
    if node.op not in LINEAR_OPS | _MOVING | _ADDING | {NORM}:
        raise NotFolded(f"its input comes from {node.op}, which has no weights", "kept")
    return node


def _check_sole(reader: Node, name: str) -> None:
    """Refuse a value that anything but its reader sees."""
    scope = reader.scope
    node = scope.producers[name]
    if name in scope.outputs:
        raise NotFolded(f"{node.op} {node.label!r} before it is an output of the graph too")
    if scope.sole_reader(name) is not reader:
        others = [n.label for n in scope.uses[name] if n is not reader]
        also = repr(others[0]) if others else "the same node again"
        raise NotFolded(f"{node.op} {node.label!r} before it is also read by {also}")
    if not node.sole_output:
        raise NotFolded(f"{node.op} {node.label!r} before it has several outputs")


def _reader(giver: Node, name: str) -> Node:
    """What reads a value, if it is of use and nothing else reads it."""
    scope = giver.scope
    if name in scope.outputs:
        raise NotFolded("what it gives is an output of the graph", "kept")
    readers = list(scope.uses[name])
    if len(readers) != 1:
        got = ", ".join(sorted({n.op for n in readers})) or "nothing"
        raise NotFolded(f"what it gives is read by {len(readers)} nodes ({got})", "kept")
    node = readers[0]
    if node.op not in LINEAR_OPS | _MOVING | {"Flatten"}:
        raise NotFolded(f"what it gives is read by {node.op}, which has no weights", "kept")
    if node.scope is not scope:
        raise NotFolded("what it gives is read within a branch or loop body")
    if scope.sole_reader(name) is None:
        raise NotFolded(f"{node.op} {node.label!r} reads it twice")
    if not node.sole_output:
        raise NotFolded(f"{node.op} {node.label!r} behind it has several outputs")
    return node


def _with_rank(document: Document, node: Node, name: str, channels: Channels) -> Channels:
    if channels.rank is not None:
        return channels
    return replace(channels, rank=document.rank(node.scope, name))


def _moved(document: Document, node: Node, channels: Channels, *, back: bool) -> Channels:
    """Where the channels are on the other side of a node that moves them."""
    if node.op == "Transpose":
        return _transposed(document, node, channels, back=back)
    if node.op == "Flatten":
        if node.attribute("axis", 1) != 1 or channels != Channels(1, channels.rank):
            raise NotFolded(f"Flatten {node.label!r} mixes the channels with other axes")
        return Channels(1, 2, repeated=True)
    if node.op == "Dropout" and document.opset >= _FIRST_DROPOUT_WITH_MODE and node.input(2):
        mode = constant(document, node.scope, node.input(2), "the mode of Dropout")
        if mode.any():
            raise NotFolded(f"Dropout {node.label!r} is in training mode")
    return channels


def _transposed(document: Document, node: Node, channels: Channels, *, back: bool) -> Channels:
    perm: list[int] = node.attribute("perm", [])
    if not perm:
        rank = channels.rank or document.rank(node.scope, node.proto.output[0])
        if rank is None:
            raise NotFolded(f"the rank of what Transpose {node.label!r} gives is not known")
        perm = list(range(rank))[::-1]
    if sorted(perm) != list(range(len(perm))) or channels.axis >= len(perm):
        msg = f"node {node.label!r}: expected a permutation of the axes, got {perm[:8]}"
        raise InputError(msg)
    if channels.repeated:
        raise NotFolded(f"Transpose {node.label!r} moves channels that Flatten has repeated")
    axis = perm[channels.axis] if back else perm.index(channels.axis)
    return Channels(axis, len(perm))

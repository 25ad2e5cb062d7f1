"""The graphs of a model as scopes: who gives a name, who reads it, and how to change that.

A scope is a graph; the branches of If and the bodies of Loop and Scan are scopes within it, which
see its names. Nothing is written into the model before `Document.commit`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from bnkit.core.errors import InputError
from bnkit.fold.onnx.reading import subgraphs

STANDARD = ("", "ai.onnx")
_FIRST_IR_WITH_CONSTANTS = 4
# one output, and nothing but that output
_PURE = frozenset({"Constant", "Identity", "Transpose", "Cast", "CastLike", "Shape", "Expand"})


@dataclass(eq=False, slots=True)
class Node:
    """One node; equal to itself alone.

    Attributes:
        proto: Its description, edited in place.
        scope: The graph it stands in.
        removed: It is left out at `commit`.
        behind: Nodes put in directly behind it; the last one comes first.
    """

    proto: NodeProto
    scope: "Scope"
    removed: bool = False
    behind: "list[Node]" = field(default_factory=list)

    @property
    def op(self) -> str:
        """Its operator; one of another domain has the domain in front."""
        standard = self.proto.domain in STANDARD
        return self.proto.op_type if standard else f"{self.proto.domain}.{self.proto.op_type}"

    @property
    def label(self) -> str:
        """Its name, or that of its first output."""
        return self.proto.name or next((o for o in self.proto.output if o), self.op)

    def input(self, index: int) -> str:
        """The name of an input, "" where it is left out."""
        return self.proto.input[index] if index < len(self.proto.input) else ""

    @property
    def sole_output(self) -> bool:
        """Whether nothing but the first output is asked for."""
        return bool(self.proto.output) and not any(self.proto.output[1:])

    def attribute(self, name: str, default: Any) -> Any:
        """The value of an attribute, of the type of the default.

        Args:
            name: Of the attribute.
            default: An int, a float, a string, or a list of ints; where the attribute is missing.

        Returns:
            The value.

        Raises:
            InputError: It has another type.
        """
        for found in self.proto.attribute:
            if found.name != name:
                continue
            kind, read = _ATTRIBUTES[type(default)]
            if found.type == kind:
                return read(found)
            msg = f"node {self.label!r}: attribute {name!r} has a type that {self.op} does not take"
            raise InputError(msg)
        return default

    def drop_attributes(self, *names: str) -> None:
        """Leave attributes out, so that their defaults hold."""
        kept = [a for a in self.proto.attribute if a.name not in names]
        copies = [type(a).FromString(a.SerializeToString()) for a in kept]
        del self.proto.attribute[:]
        self.proto.attribute.extend(copies)


@dataclass(eq=False, slots=True)
class Scope:
    """One graph.

    Attributes:
        graph: Its description.
        path: Which graph: "" for the model's own.
        parent: The graph around it.
        nodes: In order.
        producers: Node by the name of what it gives.
        uses: How often each node reads a name, here and in inner graphs.
        outputs: Names that this graph or an inner one gives out.
        inputs: Names of its inputs.
        initializers: By name.
        changed: Whether `commit` has something to write.
    """

    graph: GraphProto
    path: str
    parent: "Scope | None"
    nodes: list[Node] = field(default_factory=list)
    producers: dict[str, Node] = field(default_factory=dict)
    uses: dict[str, Counter[Node]] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    changed: bool = False

    def owner(self, name: str) -> "Scope | None":
        """The innermost scope, from this one outwards, that gives a name."""
        scope: Scope | None = self
        while scope is not None and name not in scope.uses:
            scope = scope.parent
        return scope

    def sole_reader(self, name: str) -> Node | None:
        """The one node that reads a name once, where it is not given out as well."""
        if name in self.outputs or len(self.uses[name]) != 1:
            return None
        ((node, times),) = self.uses[name].items()
        return node if times == 1 else None


class Document:
    """A model with its scopes.

    Args:
        model: Is changed by `commit` alone.
        infer: Gives the model with inferred shapes; asked once, and only where a rank matters.
    """

    def __init__(self, model: ModelProto, infer: Callable[[ModelProto], ModelProto]) -> None:
        self.model = model
        self.opset = max((o.version for o in model.opset_import if o.domain in STANDARD), default=0)
        self.scopes: list[Scope] = []
        self._infer = infer
        self._ranks: dict[tuple[str, str], int] | None = None
        self._names: set[str] = set()
        self._scan(model.graph, "", None)

    def lists_constants(self, scope: Scope) -> bool:
        """Below version 4 of the format, every initialiser has to be listed as an input too."""
        return scope.parent is None and self.model.ir_version < _FIRST_IR_WITH_CONSTANTS

    def overridable(self, scope: Scope, name: str) -> bool:
        """Whether an initialiser is a default that callers may override."""
        return name in scope.inputs and not self.lists_constants(scope)

    def nodes(self, op: str) -> list[Node]:
        """The nodes of a standard operator that are left, in all scopes."""
        return [n for s in self.scopes for n in s.nodes if n.op == op and not n.removed]

    def rank(self, scope: Scope, name: str) -> int | None:
        """How many dimensions a value has, as far as shape inference tells."""
        if self._ranks is None:
            self._ranks = {}
            _read_ranks(self._infer(self.model).graph, "", self._ranks)
        return self._ranks.get((scope.path, name))

    def set_input(self, node: Node, index: int, name: str) -> None:
        """Let a node read something else; an index behind its inputs appends."""
        while len(node.proto.input) <= index:
            node.proto.input.append("")
        self._unread(node, node.proto.input[index])
        node.proto.input[index] = name
        self._read(node, name)

    def add_constant(self, scope: Scope, hint: str, values: np.ndarray) -> str:
        """Add an initialiser under a new name like `hint`."""
        name = self.fresh(hint)
        scope.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        scope.uses[name] = Counter()
        scope.changed = True
        return name

    def rename_output(self, node: Node, name: str) -> None:
        """Let a node give its first output under a name that is free, and free the old one."""
        scope, old = node.scope, node.proto.output[0]
        scope.producers.pop(old, None)
        scope.uses.pop(old, None)
        node.proto.output[0] = name
        scope.producers[name] = node
        scope.uses.setdefault(name, Counter())
        scope.changed = True

    def insert_behind(self, node: Node, op: str, constant: str) -> Node:
        """Put `op(value, constant)` behind a node, under the name that the value had."""
        scope, name = node.scope, node.proto.output[0]
        inner = self.fresh(f"{name}_linear")
        readers = scope.uses[name]
        self.rename_output(node, inner)
        title = self.fresh(f"{node.label}_bias")
        proto = helper.make_node(op, [inner, constant], [name], title)
        added = Node(proto, scope)
        node.behind.append(added)
        scope.producers[name], scope.uses[name] = added, readers
        self._read(added, inner)
        self._read(added, constant)
        return added

    def remove(self, node: Node) -> None:
        """Leave a node out, and the constants that nothing reads any more."""
        node.removed = True
        node.scope.changed = True
        for name in node.proto.input:
            self._unread(node, name)

    def fresh(self, hint: str) -> str:
        """A name that the model does not have."""
        name, number = hint, 1
        while name in self._names:
            name, number = f"{hint}_{number}", number + 1
        self._names.add(name)
        return name

    def commit(self) -> None:
        """Write the changed graphs, inner ones first: an outer one copies its nodes."""
        for scope in reversed(self.scopes):
            if scope.changed:
                _write(scope, with_inputs=self.lists_constants(scope))

    def _scan(self, graph: GraphProto, path: str, parent: Scope | None) -> None:
        scope = Scope(graph, path, parent)
        self.scopes.append(scope)
        scope.inputs.update(i.name for i in graph.input)
        scope.initializers.update((t.name, t) for t in graph.initializer)
        sparse = {s.values.name for s in graph.sparse_initializer}
        if len(scope.inputs) < len(graph.input) or len(scope.initializers) < len(graph.initializer):
            msg = f"graph {path or graph.name!r}: two inputs or initialisers have one name"
            raise InputError(msg)
        self._give(scope, scope.inputs | scope.initializers.keys() | sparse)
        for position, proto in enumerate(graph.node):
            self._scan_node(Node(proto, scope), position)
        for value in graph.output:
            owner = scope.owner(value.name)
            if owner is None:
                msg = f"graph {path or graph.name!r}: nothing gives its output {value.name!r}"
                raise InputError(msg)
            owner.outputs.add(value.name)
        self._names.update(v.name for v in graph.value_info)

    def _scan_node(self, node: Node, position: int) -> None:
        scope = node.scope
        scope.nodes.append(node)
        self._names.add(node.proto.name)
        for name in node.proto.input:
            if name and scope.owner(name) is None:
                later = any(name in n.output for n in scope.graph.node)
                got = "a later one: the graph has a cycle or is not sorted" if later else "nothing"
                msg = (
                    f"node {node.label!r}: expected input {name!r} from an earlier node, an "
                    f"initialiser or an input, got {got}"
                )
                raise InputError(msg)
            self._read(node, name)
        for path, graph in inner_graphs(node.proto, scope.path, position):
            self._scan(graph, path, scope)
        for name in filter(None, node.proto.output):
            if name in scope.uses:
                msg = f"node {node.label!r}: its output {name!r} has the name of something else"
                raise InputError(msg)
            self._give(scope, [name])
            scope.producers[name] = node

    def _give(self, scope: Scope, names: Iterable[str]) -> None:
        for name in names:
            scope.uses[name] = Counter()
            self._names.add(name)

    def _read(self, node: Node, name: str) -> None:
        owner = node.scope.owner(name) if name else None
        if owner is not None:
            owner.uses[name][node] += 1

    def _unread(self, node: Node, name: str) -> None:
        owner = node.scope.owner(name) if name else None
        if owner is None:
            return
        owner.uses[name][node] -= 1
        if owner.uses[name][node] <= 0:
            del owner.uses[name][node]
        if not owner.uses[name] and name not in owner.outputs:
            self._collect(owner, name)

    def _collect(self, scope: Scope, name: str) -> None:
        """Drop a constant, or a node that only makes constants, when nothing reads it any more."""
        producer = scope.producers.get(name)
        if name in scope.initializers and not self.overridable(scope, name):
            del scope.initializers[name]
            scope.inputs.discard(name)
            scope.changed = True
        elif producer is not None and not producer.removed and producer.op in _PURE:
            self.remove(producer)


def inner_graphs(proto: NodeProto, path: str, position: int) -> Iterator[tuple[str, GraphProto]]:
    """The graphs within a node, each with a path of its own."""
    for attribute in proto.attribute:
        for number, graph in enumerate(subgraphs(attribute)):
            yield f"{path}/{proto.name or position}.{attribute.name}.{number}", graph


def _read_ranks(graph: GraphProto, path: str, into: dict[tuple[str, str], int]) -> None:
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            into[path, value.name] = len(value.type.tensor_type.shape.dim)
    for position, proto in enumerate(graph.node):
        for inner, subgraph in inner_graphs(proto, path, position):
            _read_ranks(subgraph, inner, into)


def _write(scope: Scope, *, with_inputs: bool) -> None:
    graph = scope.graph
    nodes = [_copy(n.proto) for first in scope.nodes for n in _chain(first) if not n.removed]
    kept = [_copy(t) for t in scope.initializers.values()]
    given = scope.inputs | scope.initializers.keys() | {o for n in nodes for o in n.output}
    infos = [_copy(v) for v in graph.value_info if v.name in given]
    if with_inputs:
        inputs = [_copy(v) for v in graph.input if v.name in scope.inputs]
        inputs += [
            helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
            for t in kept
            if t.name not in scope.inputs
        ]
        del graph.input[:]
        graph.input.extend(inputs)
    for old, new in ((graph.node, nodes), (graph.initializer, kept), (graph.value_info, infos)):
        del old[:]
        old.extend(new)


def _chain(node: Node) -> Iterator[Node]:
    yield node
    for added in reversed(node.behind):
        yield from _chain(added)


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


_ATTRIBUTES: dict[type, tuple[int, Callable[[AttributeProto], Any]]] = {
    int: (AttributeProto.INT, lambda a: a.i),
    float: (AttributeProto.FLOAT, lambda a: a.f),
    str: (AttributeProto.STRING, lambda a: a.s.decode("utf-8", "replace")),
    list: (AttributeProto.INTS, lambda a: list(a.ints)),
}

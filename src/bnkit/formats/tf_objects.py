"""The object graph of a TF2 checkpoint: which attribute path a stored variable has."""

from dataclasses import dataclass

import numpy as np

from bnkit.formats.mapped import Mapped
from bnkit.formats.wire import Message, parse

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class StoredObject:
    """A variable of a TF2 checkpoint.

    Attributes:
        path: Attributes from the root to it, by the shortest way, joined by dots.
        full_name: Its name in the graph, such as `batch_normalization/gamma`; may be empty.
    """

    path: str
    full_name: str


def object_paths(source: Mapped, graph: np.ndarray) -> dict[str, StoredObject]:
    """Decode the object graph.

    Args:
        source: The file, for messages.
        graph: The tensor `_CHECKPOINTABLE_OBJECT_GRAPH`: one string.

    Returns:
        For each stored tensor with an object, which one; slot variables of optimizers by the
        path of the variable and the name of the slot.

    Raises:
        CheckpointError: The graph is damaged.
    """
    if graph.size != 1:
        raise source.error("object graph", "one string", f"{graph.size}")
    data = Mapped(source.path, memoryview(graph.reshape(-1)[0]), "object graph")
    nodes = parse(data, "graph").messages(1, "node")
    paths = _shortest(source, nodes)
    found = {}
    for number, node in enumerate(nodes):
        for attribute in node.messages(2, "attribute"):
            key = attribute.text(3)
            found[key] = StoredObject(paths.get(number, ""), attribute.text(2))
    return found


def _shortest(source: Mapped, nodes: list[Message]) -> dict[int, str]:
    paths, front = {0: ""} if nodes else {}, [0] if nodes else []
    slots: dict[int, str] = {}
    while front:
        reached = []
        for number in front:
            for child, name in _children(source, nodes, number):
                if child not in paths:
                    path = f"{paths[number]}.{name}".removeprefix(".")
                    paths[child] = source.named(path, "path in the object graph")
                    reached.append(child)
        front = reached
    for node in nodes:
        for slot in node.messages(3, "slot variable"):
            variable, stored = slot.integer(1), slot.integer(3)
            slots[stored] = f"{paths.get(variable, '')}.{slot.text(2)}".removeprefix(".")
    return slots | paths


def _children(source: Mapped, nodes: list[Message], number: int) -> list[tuple[int, str]]:
    found = [(child.integer(1), child.text(2)) for child in nodes[number].messages(1, "child")]
    for child, name in found:
        if not 0 <= child < len(nodes):
            raise source.error("object graph", f"a node below {len(nodes)}", f"{name!r} {child}")
    return found

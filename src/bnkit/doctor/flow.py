"""Which operation feeds which: the structure of a network, as plain data."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Kind = Literal[
    "input", "batch_norm", "conv", "linear", "embedding", "activation", "gate", "dropout", "norm",
    "add", "view", "transpose", "pool", "attention", "other",
]  # fmt: skip

_NAMES: dict[Kind, tuple[str, ...]] = {
    "conv": ("conv", "convolution", "_conv_forward"),
    "linear": ("linear", "addmm", "bilinear"),
    "embedding": ("embedding",),
    "gate": ("sigmoid", "tanh", "softmax", "log_softmax", "logsoftmax", "hardsigmoid"),
    "activation": (
        "relu", "gelu", "silu", "elu", "selu", "mish", "softplus", "hardtanh", "leaky_relu",
        "leakyrelu", "prelu", "hardswish", "clamp", "swish", "softsign", "threshold",
    ),
    "norm": ("layernorm", "layer_norm", "group", "instance", "rmsnorm", "rms_norm"),
    "add": ("add", "iadd", "radd", "sub", "cat", "concat", "stack", "mul", "imul"),
    "attention": ("scaled_dot_product", "multihead", "bmm", "baddbmm", "einsum", "matmul"),
    "pool": ("pool", "mean", "sum", "amax", "max", "interpolate", "upsample"),
    "transpose": ("transpose", "permute", "movedim", "swapaxes", "mt", "t", "rearrange"),
    "view": (
        "identity", "view", "reshape", "flatten", "unflatten", "contiguous", "to", "detach",
        "squeeze", "unsqueeze", "clone", "float", "half", "bfloat16", "type", "expand", "alias",
        "getitem", "unsafe_view", "lift", "quantize", "dequantize", "chunk", "split", "channels",
    ),
}  # fmt: skip
_EXACT = {"t", "mt", "to", "add", "sub", "mul", "max", "sum", "mean", "float", "half", "type"}


def kind_of(op: str) -> Kind:
    """What an operation is, by its name.

    Args:
        op: Name of a class, a function, a method or an operator.

    Returns:
        The kind; "other" for names that no rule asks about.

    Example:
        >>> kind_of("Conv2d"), kind_of("aten.relu_.default"), kind_of("Dropout1d")
        ('conv', 'activation', 'dropout')
    """
    name = op.lower().removeprefix("aten.").removesuffix(".default").strip("_")
    name = name.partition(".")[0].strip("_")
    if "dropout" in name or name.startswith(("droppath", "drop_path", "stochasticdepth")):
        return "dropout"
    if "batch_norm" in name or "batchnorm" in name:
        return "batch_norm"
    for kind, words in _NAMES.items():
        if any(name == w or (w not in _EXACT and name.startswith(w)) for w in words):
            return kind
    return "other"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of one forward pass.

    Attributes:
        id: Position in the order of execution.
        op: Name of the class or function.
        kind: What it is.
        layer: Qualified name of the module that does it, else empty.
        inputs: Ids of the operations whose outputs it reads.
        shape: Shape of its first input, where known.
        options: Numbers that a rule asks about, such as the p of a dropout.
    """

    id: int
    op: str
    kind: Kind
    layer: str = ""
    inputs: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    options: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """The operations of one forward pass, in order.

    Attributes:
        nodes: By id.
        outputs: Ids whose results the model returns.
        traced_from: "data", "symbols" or "program".
    """

    nodes: tuple[Node, ...]
    outputs: frozenset[int]
    traced_from: str = "symbols"

    @cached_property
    def _consumers(self) -> dict[int, list[Node]]:
        found: dict[int, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for source in set(node.inputs):
                found[source].append(node)
        return found

    def consumers(self, node: Node) -> list[Node]:
        """Operations that read the result of `node`."""
        return self._consumers[node.id]

    def producers(self, node: Node) -> list[Node]:
        """Operations that `node` reads from."""
        return [self.nodes[i] for i in node.inputs]

    def batch_norms(self) -> list[Node]:
        """Calls of batch norms, in order."""
        return [n for n in self.nodes if n.kind == "batch_norm"]

    @property
    def squashed(self) -> frozenset[str]:
        """Batch norms whose result goes straight into a sigmoid or tanh."""
        return frozenset(
            n.layer
            for n in self.batch_norms()
            if any(g.kind == "gate" and "softmax" not in g.op.lower() for g in self.after(n))
        )

    def before(self, node: Node, skip: Iterable[Kind] = ("view",)) -> Node | None:
        """The operation that feeds `node`, looking through those of kind `skip`."""
        passed = set(skip)
        sources = self.producers(node)
        while len(sources) >= 1 and sources[0].kind in passed:
            sources = self.producers(sources[0])
        return sources[0] if sources else None

    def after(self, node: Node, skip: Iterable[Kind] = ("view",)) -> list[Node]:
        """The operations that `node` feeds, looking through those of kind `skip`."""
        passed = set(skip)
        found, waiting = [], list(self.consumers(node))
        while waiting:
            one = waiting.pop(0)
            if one.kind in passed:
                waiting += self.consumers(one)
            else:
                found.append(one)
        return found

    def is_output(self, node: Node, skip: Iterable[Kind] = ("view",)) -> bool:
        """Whether the model returns the result of `node`, maybe reshaped."""
        passed = set(skip)
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one.id in self.outputs:
                return True
            waiting += [c for c in self.consumers(one) if c.kind in passed]
        return False

    def upstream(self, node: Node, stop: Iterable[Kind]) -> Iterator[Node]:
        """Every operation that `node` depends on, not looking behind those of kind `stop`."""
        stops, seen, waiting = set(stop), set(), list(node.inputs)
        while waiting:
            one = self.nodes[waiting.pop()]
            if one.id in seen:
                continue
            seen.add(one.id)
            yield one
            if one.kind not in stops:
                waiting += one.inputs

"""From a batch norm backwards: the linear maps whose outputs alone it normalizes."""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from bnkit.fold.layers import Map, Norm
from bnkit.fold.regions import Flow, Site

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_ADDS = {operator.add, operator.iadd, torch.add, torch.ops.aten.add.Tensor}
_ATTRIBUTES = {"shape", "dtype", "device", "ndim"}
_LIKE = {"reshape_as", "view_as", "expand_as", "type_as"}
_QUESTIONS = {"size", "dim", "ndimension", "numel"}
_CATS = {torch.cat, torch.concat, torch.concatenate, torch.ops.aten.cat.default}


class CannotFoldError(Exception):
    """Why a batch norm cannot be folded here; the message is the reason."""


@dataclass(frozen=True)
class Target:
    """Where a scale and shift go: into maps, each for some of the channels.

    Attributes:
        kind: "map", "add" or "cat".
        map: Id of the module, for "map".
        parts: What is added or concatenated.
    """

    kind: str
    map: int = 0
    parts: tuple["Target", ...] = ()

    def maps(self) -> list[int]:
        """Ids of all maps."""
        return [self.map] if self.kind == "map" else [m for p in self.parts for m in p.maps()]


@dataclass(frozen=True)
class Place:
    """A dimension of a tensor: from the front, and of how many, where that is known."""

    axis: int
    ndim: int | None

    def from_front(self, dim: int) -> int:
        """A dimension as the code gives it, maybe from the end."""
        if dim >= 0:
            return dim
        if self.ndim is None:
            raise CannotFoldError("the number of dimensions before it is not known")
        return dim + self.ndim


@dataclass
class Walker:
    """Walks through graphs of a flow, with what is known of its modules.

    Attributes:
        flow: The graphs.
        maps: Linear maps by id of the module; text is why one is none.
        done: Ids of batch norms that are identities by now.
        claimed: Calls of maps that were found.
        visited: All nodes that were walked over.
    """

    flow: Flow
    maps: dict[int, Map | str]
    done: set[int]
    claimed: set[fx.Node] = field(default_factory=set)
    visited: set[fx.Node] = field(default_factory=set)

    def upstream(self, site: Site, norm: Norm, ndim: int) -> Target:
        """What produces the input of a batch norm.

        Args:
            site: The call of the batch norm.
            norm: The batch norm.
            ndim: Dimensions of its input.

        Returns:
            The maps to fold into.

        Raises:
            CannotFoldError: Something else does, or somebody else uses it too.
        """
        axis = norm.axis if norm.axis >= 0 else norm.axis + ndim
        source = input_of(site.node, residual=hasattr(norm.module, "act"))
        return self._behind(site.graph, source, Place(axis, ndim))

    def _behind(self, graph: fx.Graph, node: fx.Node, at: Place) -> Target:
        if node in self.visited:
            raise CannotFoldError(f"{_said(node)} before it is used twice")
        self.visited.add(node)
        others = len(readers(node)) - 1
        if others > 0:
            raise CannotFoldError(f"{_said(node)} before it is used {others} time(s) elsewhere too")
        if node.op == "placeholder":
            raise CannotFoldError("its input comes from outside of the part that can be followed")
        module = self.flow.module_of(graph, node)
        if module is not None:
            return self._module(graph, node, module, at)
        if node.op == "call_function" and node.target in _ADDS:
            return self._sum(graph, node, at)
        if node.op == "call_function" and node.target in _CATS:
            return self._concatenation(graph, node, at)
        return self._behind(graph, first(node), _before(node, at))

    def _module(self, graph: fx.Graph, node: fx.Node, module: nn.Module, at: Place) -> Target:
        if id(module) in self.done or passes(module):
            return self._behind(graph, input_of(node), at)
        found = self.maps.get(id(module))
        if isinstance(found, Map):
            _check_axis(found, at)
            self.claimed.add(node)
            return Target("map", id(module))
        raise CannotFoldError(found or f"{_said(node, module)} comes before it")

    def _sum(self, graph: fx.Graph, node: fx.Node, at: Place) -> Target:
        a, b, *_ = (*node.args, None, None)
        both = isinstance(a, fx.Node) and isinstance(b, fx.Node) and a is not b
        if len(node.args) != 2 or node.kwargs or not both:
            raise CannotFoldError("the sum before it is not one of two tensors")
        summands = [v for v in (a, b) if isinstance(v, fx.Node)]
        return Target("add", parts=tuple(self._behind(graph, v, at) for v in summands))

    def _concatenation(self, graph: fx.Graph, node: fx.Node, at: Place) -> Target:
        tensors = argument(node, 0, "tensors")
        dim = argument(node, 1, "dim", 0)
        if not isinstance(tensors, list | tuple) or not isinstance(dim, int):
            raise CannotFoldError("what is concatenated before it cannot be told")
        if at.from_front(dim) != at.axis:
            raise CannotFoldError("the concatenation before it is not one of channels")
        return Target("cat", parts=tuple(self._behind(graph, t, at) for t in tensors))


def readers(node: fx.Node) -> list[fx.Node]:
    """What reads the values of a node, and not only its shape, dtype or device."""
    return [u for u in node.users if not _asks_only(u, node)]


def _asks_only(user: fx.Node, node: fx.Node) -> bool:
    if user.op == "call_function" and user.target is getattr:
        return user.args[1] in _ATTRIBUTES
    if user.op != "call_method":
        return False
    if user.target in _LIKE:
        return node not in _nodes(user.args[:1])
    return user.target in _QUESTIONS


def _nodes(value: Any) -> list[fx.Node]:
    return [v for v in value if isinstance(v, fx.Node)]


def input_of(node: fx.Node, *, residual: bool = False) -> fx.Node:
    """The one tensor that a module is called with.

    Args:
        node: The call.
        residual: Whether there may be a second one, which is not asked for.

    Returns:
        The node of its input.

    Raises:
        CannotFoldError: There are other arguments.
    """
    given = [*node.args, *node.kwargs.values()]
    source = given[0] if given else None
    allowed = len(given) == 1 or (residual and len(given) == 2 and given[1] is not source)
    if not allowed or not isinstance(source, fx.Node):
        raise CannotFoldError(f"{_said(node)} is called with other arguments than one tensor")
    return source


def passes(module: nn.Module) -> bool:
    """Whether a module hands on its input in inference."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    dropout = type(module) in _DROPOUTS and not module.training
    return type(module) is nn.Identity or dropout


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def first(node: fx.Node) -> fx.Node:
    """The first argument of a call.

    Args:
        node: The call.

    Returns:
        Its node.

    Raises:
        CannotFoldError: It is no tensor.
    """
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        raise CannotFoldError(f"{_said(node)} comes before it")
    return source


def _before(node: fx.Node, at: Place) -> Place:
    """Where a dimension of the result was in the first argument of a function that moves it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    step = _STEPS.get(name.partition(".")[0])
    if step is None or node.op not in ("call_function", "call_method"):
        raise CannotFoldError(f"{_said(node)} comes before it")
    return step(node, at)


def _same(node: fx.Node, at: Place) -> Place:
    del node
    return at


def _dropout(node: fx.Node, at: Place) -> Place:
    if argument(node, 2, "training", default=True) is not False:
        raise CannotFoldError("a dropout comes before it")
    return at


def _transpose(node: fx.Node, at: Place) -> Place:
    a, b = argument(node, 1, "dim0"), argument(node, 2, "dim1")
    if not isinstance(a, int) or not isinstance(b, int):
        raise CannotFoldError("a transposition by computed dimensions comes before it")
    a, b = at.from_front(a), at.from_front(b)
    return Place({a: b, b: a}.get(at.axis, at.axis), at.ndim)


def _permute(node: fx.Node, at: Place) -> Place:
    dims = node.args[1:] if len(node.args) > 2 else argument(node, 1, "dims")
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        raise CannotFoldError("a permutation by computed dimensions comes before it")
    return Place(at.from_front(dims[at.axis]), at.ndim)  # pyright: ignore[reportArgumentType]


def _flatten(node: fx.Node, at: Place) -> Place:
    start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    if not isinstance(start, int) or not isinstance(end, int) or start < 0:
        raise CannotFoldError("a flattening by computed dimensions comes before it")
    if at.axis < start:
        return Place(at.axis, at.ndim + end - start if end >= 0 and at.ndim else None)
    if at.axis == start or end < 0 or at.ndim is None:
        raise CannotFoldError("a flattening of its channels comes before it")
    return Place(at.axis + end - start, at.ndim + end - start)


_STEPS = {
    "contiguous": _same, "dropout": _dropout, "transpose": _transpose, "permute": _permute,
    "swapaxes": _transpose, "swapdims": _transpose, "flatten": _flatten,
}  # fmt: skip


def _check_axis(found: Map, at: Place) -> None:
    if found.spatial:
        if at.axis != 1 or at.ndim not in (None, found.spatial + 2):
            raise CannotFoldError(
                f"{found} has its channels at dimension 1 of {found.spatial + 2}, and dimension "
                f"{at.axis} of {at.ndim or 'these'} is normalized"
            )
    elif at.ndim is None or at.axis != at.ndim - 1:
        raise CannotFoldError(
            f"{found} has its channels at the last dimension, and dimension {at.axis} of "
            f"{at.ndim or 'these'} is normalized"
        )


def _said(node: fx.Node, module: nn.Module | None = None) -> str:
    if node.op == "placeholder":
        return "the input of this part of the model"
    if node.op == "call_module":
        kind = "" if module is None else f" ({type(module).__name__})"
        return f"{str(node.target)!r}{kind}"
    if node.op == "get_attr":
        return f"a tensor of the model, {node.target!r},"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"{name}()"

"""Read the structure of a network: from one forward pass, or from symbols without data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bnkit.core.errors import InputError
from bnkit.doctor.find import is_batch_norm
from bnkit.doctor.flow import Flow, Node, kind_of

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_COMPOSED = ("Transformer",)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation: a batch norm, or a layer that torch or bnkit ships."""
    if is_batch_norm(module):
        return True
    home = type(module).__module__
    composed = isinstance(module, _CONTAINERS) or type(module).__name__.startswith(_COMPOSED)
    return home.startswith(("torch.nn", "bnkit.nn")) and not composed


class _Tracer(TorchFunctionMode):
    """Writes down every call of a torch function that is not inside a leaf module."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.depth = 0
        self._made_by: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an id is only unique among the living

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.depth == 0:
            options = _function_options(func, args, kwargs or {})
            self.note(getattr(func, "__name__", str(func)), (args, kwargs), result, options)
        return result

    def note(
        self, op: str, given: Any, result: Any, options: dict[str, float], layer: str = ""
    ) -> None:
        """Write down one operation, when it makes a tensor of one that is known."""
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        tensors = [t for t in tree_leaves(given) if isinstance(t, Tensor)]
        inputs = tuple(
            dict.fromkeys(i for t in tensors if (i := self._made_by.get(id(t))) is not None)
        )
        if not made or not (inputs or layer):
            return
        kind = kind_of(op)
        shape = tuple(tensors[0].shape) if tensors else None
        self._add(Node(len(self.nodes), op, kind, layer, inputs, shape, options), made)

    def begin(self, given: Any) -> None:
        """Write down the inputs of the model."""
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor):
                shape = tuple(tensor.shape)
                self._add(Node(len(self.nodes), "input", "input", shape=shape), [tensor])

    def end(self, result: Any) -> Flow:
        """The flow, given what the model returned."""
        values = vars(result).values() if hasattr(result, "__dict__") else ()
        leaves = [*tree_leaves(result), *tree_leaves(list(values))]
        made = {self._made_by.get(id(t)) for t in leaves if isinstance(t, Tensor)}
        return Flow(tuple(self.nodes), frozenset(i for i in made if i is not None), "data")

    def _add(self, node: Node, made: list[Tensor]) -> None:
        self.nodes.append(node)
        for tensor in made:
            self._made_by[id(tensor)] = node.id
            self._alive.append(tensor)


def trace(model: nn.Module, run: Callable[[nn.Module], Any], given: Any) -> Flow:
    """Write down the operations of one forward pass.

    Args:
        model: A copy that may be run; hooks are put on it and taken off again.
        run: Runs the model.
        given: What `run` passes to the model.

    Returns:
        The flow.
    """
    tracer = _Tracer()
    tracer.begin(given)
    handles = []
    for name, module in model.named_modules():
        if is_leaf(module) and module is not model:
            handles += _listen(tracer, name, module)
    if is_leaf(model):
        handles += _listen(tracer, "", model)
    try:
        with torch.no_grad(), tracer:
            return tracer.end(run(model))
    finally:
        for handle in handles:
            handle.remove()


def trace_symbols(model: nn.Module) -> Flow:
    """Write down the operations of a model without running it, by `torch.fx`.

    Args:
        model: The model; it is not changed.

    Returns:
        The flow, without shapes.

    Raises:
        InputError: The forward pass depends on values, which symbols do not have.
    """
    tracer = _SymbolTracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        msg = f"the structure cannot be traced without data ({type(error).__name__}: {error})"
        raise InputError(msg) from error
    return from_graph(graph, dict(model.named_modules()))


def from_graph(graph: fx.Graph, modules: dict[str, nn.Module]) -> Flow:
    """The flow of a graph of `torch.fx`.

    Args:
        graph: The graph.
        modules: What its `call_module` nodes call, by name; empty for exported programs.

    Returns:
        The flow.
    """
    ids: dict[fx.Node, int] = {}
    nodes: list[Node] = []
    outputs: frozenset[int] = frozenset()
    for one in graph.nodes:
        inputs = tuple(ids[n] for n in one.all_input_nodes if n in ids)
        if one.op == "output":
            outputs = frozenset(inputs)
            continue
        if one.op == "get_attr":
            continue
        ids[one] = len(nodes)
        nodes.append(_symbol(len(nodes), one, inputs, modules))
    return Flow(tuple(nodes), outputs, "symbols" if modules else "program")


class _SymbolTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return is_leaf(m)


def _symbol(id: int, one: fx.Node, inputs: tuple[int, ...], modules: dict[str, nn.Module]) -> Node:
    if one.op == "placeholder":
        return Node(id, "input", "input")
    if one.op == "call_module":
        module = modules[str(one.target)]
        op = type(module).__name__
        kind = "batch_norm" if is_batch_norm(module) else kind_of(op)
        return Node(id, op, kind, str(one.target), inputs, None, _module_options(module))
    op = one.target if isinstance(one.target, str) else getattr(one.target, "__name__", "call")
    options = {}
    if callable(one.target) and one.op == "call_function":
        options = _function_options(one.target, one.args, one.kwargs)
    return Node(id, str(op), kind_of(str(op)), "", inputs, None, options)


def _listen(tracer: _Tracer, name: str, module: nn.Module) -> list[Any]:
    def enter(_module: nn.Module, _given: Any) -> None:
        tracer.depth += 1

    def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        tracer.depth -= 1
        if tracer.depth == 0:
            op = type(module).__name__
            op = f"batch_norm:{op}" if is_batch_norm(module) else op
            tracer.note(op, (args, kwargs), result, _module_options(module), name)

    # the last to run before and after, so that the work of other hooks is inside the leaf
    return [
        module.register_forward_pre_hook(enter, prepend=True),
        module.register_forward_hook(leave, with_kwargs=True),
    ]


def _module_options(module: nn.Module) -> dict[str, float]:
    options = {}
    for name in ("p", "drop_prob", "out_features", "out_channels", "padding"):
        value = getattr(module, name, None)
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, int | float):
            options[name] = float(value)
    if getattr(module, "bias", None) is not None:
        options["bias"] = 1.0
    if getattr(module, "padding_mode", "zeros") != "zeros":
        options["padding"] = 0.0
    return options


def _function_options(func: Any, args: Any, kwargs: Any) -> dict[str, float]:
    name = getattr(func, "__name__", "")
    position, key = {"batch_norm": (5, "training"), "dropout": (1, "p")}.get(name, (None, ""))
    if position is None:
        return {}
    value = kwargs.get(key, args[position] if len(args) > position else None)
    found = (
        {} if value is None or not isinstance(value, bool | int | float) else {key: float(value)}
    )
    if name == "batch_norm" and not func.__module__.startswith("torch.nn.functional"):
        return {}  # another order of arguments
    if name == "batch_norm":
        mean = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
        found["statistics"] = float(mean is not None)
    if name == "dropout" and not kwargs.get("training", args[2] if len(args) > 2 else True):
        found["inactive"] = 1.0
    return found

"""The parts of a model whose code can be followed, and the graphs of each.

A model is followed as a whole where that is possible. Where a module's code cannot be, it becomes
one opaque step of what is around it, and each of its children is a part of its own: what happens
within a part is known however the part itself is called.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import fx, nn

from bnkit.fold.layers import is_leaf
from bnkit.fold.observing import Observation
from bnkit.fold.tracing import NotTraceableError, Setting, all_paths


class Site(NamedTuple):
    """One call of a module in one graph."""

    graph: fx.Graph
    node: fx.Node


@dataclass
class Flow:
    """Where modules are called, in all parts of a model.

    Attributes:
        model: The copy that was followed.
        sites: Calls of each module, by its id.
        unknown: Why the calls of a module cannot be told, by its id.
        borrowed: Who else computes with the tensors of a module, by its id.
        handed: Modules that are handed to functions, which may read their attributes.
        regions: Names of the parts.
        opaque: Names of modules whose code cannot be followed, each with the reason.
    """

    model: nn.Module
    sites: dict[int, list[Site]] = field(default_factory=lambda: defaultdict(list))
    unknown: dict[int, str] = field(default_factory=dict)
    borrowed: dict[int, str] = field(default_factory=dict)
    handed: set[int] = field(default_factory=set)
    regions: list[str] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)
    modules: dict[fx.Graph, nn.Module] = field(default_factory=dict)

    def module_of(self, site_graph: fx.Graph, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or None."""
        if node.op != "call_module":
            return None
        return self.modules[site_graph].get_submodule(str(node.target))


def follow(model: nn.Module, seen: Observation) -> Flow:
    """Follow the code of a model.

    Args:
        model: The copy that was observed; its code runs, on symbols.
        seen: What was observed.

    Returns:
        The flow.
    """
    flow = Flow(model, borrowed=dict(seen.borrowed))
    names = {id(m): name for name, m in model.named_modules()}
    waiting: list[nn.Module] = [model]
    done: set[int] = set()
    while waiting:
        region = waiting.pop(0)
        if id(region) in done:
            continue
        done.add(id(region))
        if is_leaf(region):
            if region is model:
                flow.unknown[id(region)] = "it is the whole model"
            continue
        waiting += _follow_region(flow, seen, region, names)
    _check_callers(flow, seen)
    return flow


def _check_callers(flow: Flow, seen: Observation) -> None:
    """A module that ran outside of the parts that were followed is called by other code too."""
    known = {key: {id(flow.modules[site.graph]) for site in sites}
             for key, sites in flow.sites.items()}  # fmt: skip
    running: list[int] = []
    for event in seen.events:
        if not event.enters:
            running.pop()
            continue
        if event.module in known and not known[event.module] & set(running):
            reason = "it is also called by code that cannot be followed"
            flow.unknown.setdefault(event.module, reason)
        running.append(event.module)


def _follow_region(
    flow: Flow, seen: Observation, region: nn.Module, names: dict[int, str]
) -> list[nn.Module]:
    """Add the graphs of one part; returns what has to be followed on its own."""
    if isinstance(region, (nn.ModuleList, nn.ModuleDict)) or not seen.ran(region):
        _leave_to_children(flow, region, "")
        return list(region.children())
    opaque: set[int] = set()
    given = [g for g, _ in seen.calls(id(region), lambda _: True)]
    setting = Setting(
        lambda m: is_leaf(m) or id(m) in opaque,
        frozenset(n for g in given for n in g.absent),
        {n: k for n, k in given[0].lengths.items() if all(g.lengths.get(n) == k for g in given)},
    )
    name = names[id(region)]
    while True:
        try:
            graphs = all_paths(region, setting)
            _check_seen(seen, region, graphs, opaque)
        except NotTraceableError as error:
            if error.helper is not None and error.helper not in setting.helpers:
                setting.helpers.append(error.helper)
                continue
            if error.module is region or id(error.module) in opaque:
                flow.opaque[name] = error.reason
                _leave_to_children(flow, region, _blame(name, region, error.reason))
                return list(region.children())
            same = {id(m) for m in region.modules() if type(m) is type(error.module)}
            opaque |= same - {id(region)} or {id(error.module)}
        else:
            break
    flow.regions.append(name)
    _add(flow, region, graphs)
    return [m for m in region.modules() if id(m) in opaque]


def _blame(name: str, region: nn.Module, reason: str) -> str:
    where = (
        f"{name!r} ({type(region).__name__})" if name else f"the model ({type(region).__name__})"
    )
    return f"the code of {where} cannot be followed: {reason}"


def _leave_to_children(flow: Flow, region: nn.Module, reason: str) -> None:
    containers = (nn.ModuleList, nn.ModuleDict)
    for child in region.children():
        if is_leaf(child) and reason:
            flow.unknown.setdefault(id(child), reason)
        elif isinstance(child, containers) and reason:
            _leave_to_children(flow, child, reason)


def _check_seen(
    seen: Observation, region: nn.Module, graphs: list[fx.Graph], opaque: set[int]
) -> None:
    """What ran must be one of the ways: symbols may have misled code that asks for types."""
    known = {id(m): m for m in region.modules()}

    def leaves(module: int) -> bool:
        # modules from elsewhere are steps too, and make the comparison fail
        return module not in known or is_leaf(known[module]) or module in opaque

    ways = {tuple(id(region.get_submodule(str(n.target))) for n in g.nodes
                  if n.op == "call_module") for g in graphs}  # fmt: skip
    for _, called in seen.calls(id(region), leaves):
        if tuple(called) not in ways:
            reason = "it ran another way on the example inputs than on symbols"
            raise NotTraceableError(region, reason)


def _add(flow: Flow, region: nn.Module, graphs: list[fx.Graph]) -> None:
    for graph in graphs:
        flow.modules[graph] = region
        for node in graph.nodes:
            if node.op == "call_module":
                module = region.get_submodule(str(node.target))
                flow.sites[id(module)].append(Site(graph, node))
            elif node.op == "get_attr" and not _asks_only(node):
                handed = dict(region.named_modules()).get(str(node.target))
                if handed is not None:
                    flow.handed.add(id(handed))
                    continue
                owner = region.get_submodule(str(node.target).rpartition(".")[0])
                flow.borrowed.setdefault(id(owner), f"{type(region).__name__}.forward")


def _asks_only(node: fx.Node) -> bool:
    """Whether a parameter is only asked for its dtype, device or shape."""
    asked = {"dtype", "device", "shape", "ndim", "requires_grad"}
    return all(u.target is getattr and u.args[1] in asked for u in node.users)

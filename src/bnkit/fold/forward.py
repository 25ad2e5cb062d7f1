"""From a batch norm forwards: the linear maps that alone read its output."""

from torch import fx, nn

from bnkit.fold.layers import Map
from bnkit.fold.regions import Flow
from bnkit.fold.walking import CannotFoldError, input_of, passes, readers


def consumers(
    flow: Flow,
    norm: nn.Module,
    maps: dict[int, Map | str],
    done: set[int],
    place: tuple[int, int],
) -> list[int]:
    """The maps behind a batch norm, if nothing else is.

    Args:
        flow: The graphs.
        norm: The batch norm.
        maps: Linear maps by id of the module; text is why one is none.
        done: Ids of batch norms that are identities by now.
        place: Dimension of the channels, and how many dimensions there are.

    Returns:
        Ids of the maps.

    Raises:
        CannotFoldError: Something else reads it too, or a map reads other things too.
    """
    found: dict[int, set[fx.Node]] = {}
    for graph, node in flow.sites[id(norm)]:
        reached = _reached(flow, graph, node, maps, done)
        if not reached:
            raise CannotFoldError("nothing comes behind it")
        for map_node, key in reached:
            found.setdefault(key, set()).add(map_node)
    for key, nodes in found.items():
        one = maps[key]
        if any(site.node not in nodes for site in flow.sites[key]):
            raise CannotFoldError(f"{one} behind it is used without it elsewhere")
        if isinstance(one, Map):
            _check_axis(one, *place)
    calls = {sum(n.graph is g for n in nodes) for g, _ in flow.sites[id(norm)]
             for nodes in found.values()}  # fmt: skip
    if 0 in calls:
        raise CannotFoldError("what comes behind it depends on the input")
    return list(found)


def _reached(
    flow: Flow, graph: fx.Graph, node: fx.Node, maps: dict[int, Map | str], done: set[int]
) -> list[tuple[fx.Node, int]]:
    reached: list[tuple[fx.Node, int]] = []
    for user in readers(node):
        module = flow.module_of(graph, user)
        if module is None:
            said = "the output" if user.op == "output" else f"{user.name}()"
            raise CannotFoldError(f"{said} comes behind it")
        input_of(user)
        if passes(module) or id(module) in done:
            reached += _reached(flow, graph, user, maps, done)
            continue
        found = maps.get(id(module))
        if not isinstance(found, Map):
            what = f"{str(user.target)!r} ({type(module).__name__}) comes behind it"
            raise CannotFoldError((found or what).replace("before it", "behind it"))
        reached.append((user, id(module)))
    return reached


def _check_axis(one: Map, axis: int, ndim: int) -> None:
    place = axis if axis >= 0 else axis + ndim
    expected = (1, one.spatial + 2) if one.spatial else (ndim - 1, ndim)
    if (place, ndim) != expected:
        raise CannotFoldError(
            f"{one} behind it takes channels at another dimension than {place} of {ndim}"
        )

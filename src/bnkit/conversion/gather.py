"""The layers of a file, by the names and shapes of its tensors."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bnkit.conversion.kernels import Layout
from bnkit.conversion.layer import Kind, Layer
from bnkit.conversion.names import EMA, aside, take_apart
from bnkit.conversion.worlds import World
from bnkit.formats import BatchNormEntry

_TRANSPOSED = re.compile(r"transpos|deconv", re.IGNORECASE)
_DEPTHWISE = re.compile(r"depthwise|dwconv", re.IGNORECASE)
_PLAIN_CONV = re.compile(r"(?:^|[/._])(?:conv[123]_?d(?:_\d+)?|Conv_\d+)$")
_OTHER_ROLES = {
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "moving_var": "running_var",
}
_KERNEL_KINDS: tuple[Kind, ...] = ("conv", "depthwise", "conv_transpose")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a conversion: layers, and where their numbers are.

    Attributes:
        title: What it is, for messages: a path, or the class of a model.
        world: Its framework's conventions.
        layers: In its order.
        ordered: Whether that order is the one in which they were made.
        read: The array of a tensor, by its name.
        dtypes: Stored dtype of every tensor.
        aside: Tensors that are no part of the network, with the reason.
    """

    title: str
    world: World
    layers: tuple[Layer, ...]
    ordered: bool
    read: Callable[[str], np.ndarray] = field(repr=False)
    dtypes: Mapping[str, str] = field(default_factory=dict, repr=False)
    aside: Mapping[str, str] = field(default_factory=dict)

    def layout(self, layer: Layer, kind: Kind) -> Layout | None:
        """How the kernel of one of its layers is laid out, if it is of that kind."""
        return layer.layouts.get(kind) or self.world.layouts.get(kind)

    def kernel(self, layer: Layer, kind: Kind) -> Layout:
        """The same of a layer that is of that kind."""
        return layer.layouts.get(kind) or self.world.layouts[kind]


def gather(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    entries: Iterable[BatchNormEntry],
    world: World,
) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Group tensors into layers.

    Args:
        shapes: Of all tensors, by name.
        dtypes: Likewise.
        entries: The batch norms among them.
        world: How the framework names the others.

    Returns:
        The layers in the order of their first tensors, and what is no part of the network.
    """
    ignored = {n: r for n in shapes if (r := aside(n, shapes.keys(), dtypes[n]))}
    found: dict[str, Layer] = {}
    taken: set[str] = set()
    for entry in entries:
        if not set(entry.tensors.values()) & ignored.keys():
            layer = batch_norm_layer(entry, shapes)
            found[next(iter(layer.tensors.values()))] = layer
            taken |= set(layer.tensors.values())
    scopes: dict[str, dict[str, str]] = {}
    norms = {layer.place: key for key, layer in found.items()}
    for name in shapes:
        if name not in taken and name not in ignored:
            parts = take_apart(name)
            if parts.scope in norms and parts.leaf.isdigit():
                key = norms[parts.scope]
                found[key] = _with_unnamed(found[key], name, shapes[name])
            else:
                scopes.setdefault(parts.scope, {})[parts.leaf] = name
    for scope, leaves in scopes.items():
        for layer in _layers_of(scope, leaves, shapes, world):
            found[next(iter(layer.tensors.values()))] = layer
    place = {name: i for i, name in enumerate(shapes)}
    first = sorted(found.values(), key=lambda x: min(place[n] for n in x.tensors.values()))
    return tuple(first), ignored


def _with_unnamed(layer: Layer, name: str, shape: tuple[int, ...]) -> Layer:
    """Keras 3 numbers variables: without a configuration the first of three has no role yet."""
    return replace(
        layer,
        tensors={**layer.tensors, "unnamed": name},
        shapes={**layer.shapes, "unnamed": shape},
    )


def shadows(names: Iterable[str]) -> dict[str, str]:
    """Tensors that have an exponential moving average in the same file, with its name."""
    names = set(names)
    return {n: f"{n}/{EMA}" for n in names if f"{n}/{EMA}" in names}


def batch_norm_layer(entry: BatchNormEntry, shapes: Mapping[str, tuple[int, ...]]) -> Layer:
    """The layer that an entry of a checkpoint describes."""
    facts: dict[str, Any] = {"eps": entry.eps, "ema_weight": entry.ema_weight}
    facts |= {"attributes": dict(entry.attributes), "axis": entry.axis}
    tensors = dict(entry.tensors)
    return Layer(
        name=entry.name,
        kinds=("batch_norm",),
        tensors=tensors,
        shapes={role: shapes[name] for role, name in tensors.items()},
        facts=facts,
        path=take_apart(tensors.get("running_mean", next(iter(tensors.values())))).scope,
    )


def _layers_of(
    scope: str, leaves: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], world: World
) -> Iterable[Layer]:
    """The layer of a scope; a separable convolution is two."""
    roles = _positions(leaves, shapes) or {leaf: _role(leaf, world) for leaf in leaves}
    parts: dict[str, dict[str, str]] = {}
    for leaf, name in leaves.items():
        part = next((p for p in ("depthwise", "pointwise") if leaf.startswith(p)), "")
        parts.setdefault(part, {})[roles[leaf]] = name
    if "pointwise" in parts and "" in parts:
        parts["pointwise"] |= parts.pop("")  # the bias comes last
    if "depthwise" in parts and "" in parts:
        parts["depthwise"] |= parts.pop("")
    for part, tensors in parts.items():
        sizes = {role: shapes[name] for role, name in tensors.items()}
        named = f"{scope}/{part}" if len(parts) > 1 else scope
        hint = f"{scope}/{part}" if part else scope
        yield Layer(name=named, kinds=_kinds(hint, sizes, world), tensors=tensors, shapes=sizes)


def _positions(
    leaves: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str] | None:
    """Roles of the variables that Keras 3 stores by number; None if they have names."""
    if not all(leaf.isdigit() for leaf in leaves):
        return None
    order = sorted(leaves, key=int)
    ranks = [len(shapes[leaves[leaf]]) for leaf in order]
    if ranks[:1] != [1] and len(ranks) <= 2 and all(r == 1 for r in ranks[1:]):
        return dict(zip(order, ("weight", "bias"), strict=False))
    return {leaf: leaf for leaf in order}


def _role(leaf: str, world: World) -> str:
    if leaf in world.weights:
        return "weight"
    if leaf in world.biases:
        return "bias"
    return _OTHER_ROLES.get(leaf, leaf)


def _kinds(scope: str, sizes: Mapping[str, tuple[int, ...]], world: World) -> tuple[Kind, ...]:
    weight, bias = sizes.get("weight"), sizes.get("bias", (1,))
    vector = sum(n != 1 for n in bias) <= 1  # Equinox keeps (c, 1, 1) beside a convolution
    if sizes.keys() & {"running_mean", "running_var"}:
        return ("batch_norm",)  # half of one
    if weight is None and sizes.keys() == {"bias"}:
        return ("other", "batch_norm")
    if weight is None or not vector or sizes.keys() - {"weight", "bias"}:
        return ("other",)
    if len(weight) == 2:
        return ("dense", "other")
    if len(weight) < 2:
        return ("other", "batch_norm")  # whose statistics were not saved, or a layer norm
    if _DEPTHWISE.search(scope) and "depthwise" in world.layouts:
        return ("depthwise", "conv")
    if _TRANSPOSED.search(scope):
        return ("conv_transpose",)
    if _PLAIN_CONV.search(scope):
        return ("conv",) if world.channels_last else ("conv", "depthwise")
    return _KERNEL_KINDS

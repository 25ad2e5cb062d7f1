"""Dense layers behind a flattened feature map, whose inputs frameworks order differently."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from bnkit.conversion.gather import Side
from bnkit.conversion.layer import Layer
from bnkit.conversion.matching import Pair, channels
from bnkit.core import ConversionError, InputError

Flatten = Mapping[str, Sequence[int] | None]
_CONVOLUTIONS = ("conv", "conv_transpose", "depthwise")


def flattened(
    pairs: Sequence[Pair], sides: tuple[Side, Side], given: Flatten
) -> dict[str, tuple[int, ...]]:
    """Spatial sizes of the flattened maps, by the names of the dense layers of the target.

    A channels-last framework flattens `(h, w, c)`, a channels-first one `(c, h, w)`. Where one side
    is of each kind, a dense layer that has not as many inputs as the convolution or batch norm
    before it has channels reads a flattened map, and its kernel has to be reordered. Behind
    another dense layer nothing is flattened.

    Args:
        pairs: In the order of the target.
        sides: Source and target.
        given: `(h, w)` by name of the dense layer, in the target or the source; None for a layer
            whose input is not flattened.

    Returns:
        The sizes, where reordering is needed.

    Raises:
        ConversionError: Sizes of a flattened map are not given, or do not divide the inputs.
        InputError: A name that is no dense layer.
    """
    known = {n for p in pairs if p.kind == "dense" for n in (p.target.name, p.source.name)}
    wrong = given.keys() - known
    if wrong:
        msg = (
            f"flatten: expected names of dense layers, got {sorted(wrong)[0]!r}. They are: "
            f"{', '.join(repr(n) for n in sorted(known)) or 'none'}."
        )
        raise InputError(msg)
    if sides[0].world.channels_last == sides[1].world.channels_last:
        return {}
    walked = 1 if sides[1].ordered or not sides[0].ordered else 0
    by_layer = {id((p.source, p.target)[walked]): p for p in pairs}
    found: dict[str, tuple[int, ...]] = {}
    for layer, before in _walk(sides[walked]):
        pair = by_layer.get(id(layer))
        if pair is not None and pair.kind == "dense":
            sizes = _sizes(pair, _inputs(pair.target, sides[1]), before, given)
            if sizes:
                found[pair.target.name] = sizes
    return found


def _walk(side: Side) -> Iterator[tuple[Layer, set[int]]]:
    """Dense layers, each with the channels that may reach it unflattened; none behind another.

    Without an order those are all channels of the network.

    Yields:
        The layer, and numbers of channels; none where no map comes before.
    """
    widths = {id(x): _channels(x, side) for x in side.layers}
    every = set().union(*widths.values()) if any(map(_is_map, side.layers)) else set()
    before: set[int] = set()
    for layer in side.layers:
        if layer.kinds[0] == "dense":
            yield layer, before if side.ordered else every
            before = set()
        elif _is_map(layer):
            before = widths[id(layer)]
        elif layer.is_batch_norm and before:
            before = widths[id(layer)]  # behind a concatenation it has more than the convolution


def _is_map(layer: Layer) -> bool:
    return layer.kinds[0] in _CONVOLUTIONS


def _sizes(pair: Pair, inputs: int, before: set[int], given: Flatten) -> tuple[int, ...] | None:
    for name in (pair.target.name, pair.source.name):
        if name in given:
            sizes = given[name]
            if sizes is None:
                return None
            if not sizes or min(sizes) < 1 or inputs % prod(sizes):
                msg = (
                    f"flatten: {name!r}: expected spatial sizes whose product divides its {inputs} "
                    f"inputs, got {tuple(sizes)}."
                )
                raise ConversionError(msg)
            return tuple(sizes)
    if not before or inputs in before:
        return None
    channels = max(before)
    area = inputs // channels
    side = round(area**0.5)
    like = f", perhaps {(side, side)}" if side * side * channels == inputs else ""
    msg = (
        f"{pair.source.name!r} -> {pair.target.name!r}: {inputs} inputs behind a convolution of "
        f"{channels} channels are a flattened map, which source and target order differently. Pass "
        f"its spatial sizes{like}: flatten={{{pair.target.name!r}: (h, w)}}, or None if nothing is "
        "flattened there."
    )
    raise ConversionError(msg)


def _channels(layer: Layer, side: Side) -> set[int]:
    """Channels of what a layer computes, as far as its shapes tell."""
    if layer.is_batch_norm:
        return {channels(layer)}
    found = set()
    for kind in layer.kinds:
        layout = side.layout(layer, kind) if kind != "other" else None
        shape = layout.shape(layer.shapes["weight"]) if layout else None
        if shape is not None:
            found.add(shape[1] if kind == "conv_transpose" else shape[0])
    return found


def _inputs(layer: Layer, side: Side) -> int:
    layout = side.layout(layer, "dense")
    shape = layout.shape(layer.shapes["weight"]) if layout else None
    return shape[1] if shape else 0

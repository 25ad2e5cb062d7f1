"""Dense layers behind a flattened feature map, whose inputs frameworks order differently."""

from collections.abc import Mapping, Sequence
from math import prod

from bnkit.conversion.gather import Side
from bnkit.conversion.layer import Kind, Layer
from bnkit.conversion.matching import Pair
from bnkit.core import ConversionError, InputError

Flatten = Mapping[str, Sequence[int] | None]
_CONVOLUTIONS = ("conv", "conv_transpose", "depthwise")


def flattened(
    pairs: Sequence[Pair], sides: tuple[Side, Side], given: Flatten
) -> dict[str, tuple[int, ...]]:
    """Spatial sizes of the flattened maps, by the names of the dense layers of the target.

    A channels-last framework flattens `(h, w, c)`, a channels-first one `(c, h, w)`. Where one side
    is of each kind, a dense layer whose inputs are a multiple of the channels of the convolution
    before it reads a flattened map, and its kernel has to be reordered.

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
    before: int | None = None
    found: dict[str, tuple[int, ...]] = {}
    by_target = {id(p.target): p for p in pairs}
    for layer in sides[1].layers:
        pair = by_target.get(id(layer))
        kind = pair.kind if pair else layer.kinds[0]
        if kind in _CONVOLUTIONS:
            before = _outputs(layer, kind, sides[1])
        elif kind == "dense":
            inputs = _inputs(layer, sides[1])
            if pair is not None:
                sizes = _sizes(pair, inputs, before, given)
                if sizes:
                    found[layer.name] = sizes
            before = None
    return found


def _sizes(pair: Pair, inputs: int, before: int | None, given: Flatten) -> tuple[int, ...] | None:
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
    if before is None or inputs == before or inputs % before:
        return None
    area = inputs // before
    side = round(area**0.5)
    like = f"({side}, {side})" if side * side == area else f"with the product {area}"
    msg = (
        f"{pair.source.name!r} -> {pair.target.name!r}: {inputs} inputs behind a convolution of "
        f"{before} channels are a flattened map, which source and target order differently. Pass "
        f"its spatial sizes, perhaps {like}: flatten={{{pair.target.name!r}: (h, w)}}, or None if "
        "nothing is flattened there."
    )
    raise ConversionError(msg)


def _outputs(layer: Layer, kind: Kind, side: Side) -> int | None:
    layout = side.layout(layer, kind)
    shape = layout.shape(layer.shapes["weight"]) if layout else None
    if shape is None:
        return None
    return shape[1] if kind == "conv_transpose" else shape[0]


def _inputs(layer: Layer, side: Side) -> int:
    layout = side.layout(layer, "dense")
    shape = layout.shape(layer.shapes["weight"]) if layout else None
    return shape[1] if shape else 0

"""Which kernel a batch norm belongs to: the proof that an order of layers was understood."""

import re
from collections.abc import Sequence

from bnkit.conversion.gather import Side
from bnkit.conversion.layer import Layer
from bnkit.conversion.names import numbers, template

_KIND_WORDS = re.compile(
    r"(?:^|_)(?:batch_?norm(?:alization)?|bn|norm|(?:depthwise_|separable_)?conv(?:[123]d)?"
    r"(?:_?transpose)?|dense|fc|linear)(?=_|\d*$)",
    re.IGNORECASE,
)


def partners(side: Side) -> dict[int, Layer]:
    """The kernel before each batch norm, as far as order or names tell it.

    Args:
        side: Its layers, in the order in which they were made if it is `ordered`.

    Returns:
        Layers by the `id` of the batch norm.
    """
    kernels = [x for x in side.layers if not x.is_batch_norm and "weight" in x.tensors]
    norms = [x for x in side.layers if x.is_batch_norm]
    if side.ordered:
        return _before(side.layers)
    if len({template(x.place) for x in side.layers}) == 1:  # layer_with_weights-3
        return _before(sorted(side.layers, key=lambda x: numbers(x.place)))
    found: dict[int, Layer] = {}
    stems = _by_stem(kernels, norms)
    for norm in norms:
        around = [k for k in kernels if norm.place.startswith(f"{k.place}/")]
        if around:
            found[id(norm)] = max(around, key=lambda k: len(k.place))
        elif id(norm) in stems:
            found[id(norm)] = stems[id(norm)]
    return found


def contradiction(
    pairs: Sequence[tuple[Layer, Layer]], sides: tuple[Side, Side]
) -> tuple[Layer, Layer] | None:
    """A batch norm whose counterpart stands behind another kernel than its own kernel's.

    Args:
        pairs: Layers of the source and their counterparts.
        sides: Whose they are.

    Returns:
        That pair. None if there is none, or if no batch norm at all stands behind its kernel, as
        in networks that normalize first: then this proves nothing.
    """
    left, right = (partners(side) for side in sides)
    images = {id(s): t for s, t in pairs}
    agree, wrong = 0, None
    for source, target in pairs:
        own, other = left.get(id(source)), right.get(id(target))
        if not source.is_batch_norm or own is None or other is None or id(own) not in images:
            continue
        if images[id(own)] is other:
            agree += 1
        else:
            wrong = wrong or (source, target)
    return wrong if agree else None


def _before(layers: Sequence[Layer]) -> dict[int, Layer]:
    found: dict[int, Layer] = {}
    last: Layer | None = None
    for layer in layers:
        if not layer.is_batch_norm:
            last = layer if "weight" in layer.tensors else last
        elif last is not None:
            found[id(layer)] = last
    return found


def _by_stem(kernels: Sequence[Layer], norms: Sequence[Layer]) -> dict[int, Layer]:
    """Names that differ in the word for the layer alone: `block1_2_conv`, `block1_2_bn`."""
    groups: dict[str, list[Layer]] = {}
    for kernel in kernels:
        groups.setdefault(_stem(kernel.place), []).append(kernel)
    automatic = sum(bool(re.fullmatch(r"_?\d*", _last(_stem(k.place)))) for k in kernels)
    found: dict[int, Layer] = {}
    for norm in norms:
        stem = _stem(norm.place)
        if len(groups.get(stem, ())) != 1:
            continue
        numbered = re.fullmatch(r"_?\d*", _last(stem))
        if numbered and automatic != len(norms):
            continue  # conv2d_3 and batch_normalization_3 correspond only if each has the other
        found[id(norm)] = groups[stem][0]
    return found


def _stem(place: str) -> str:
    parts = re.split(r"[/.]", place)
    ends = list(_KIND_WORDS.finditer(parts[-1]))
    if ends:
        last = ends[-1]
        parts[-1] = parts[-1][: last.start()] + parts[-1][last.end() :]
    return "/".join(parts)


def _last(stem: str) -> str:
    return stem.rpartition("/")[2]

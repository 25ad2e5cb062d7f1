"""Which layer of the source is which layer of the target: by rule, name, shape and order."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from bnkit.conversion.gather import Side
from bnkit.conversion.layer import Kind, Layer
from bnkit.conversion.names import numbers, template, words
from bnkit.conversion.partners import contradiction
from bnkit.core import ConversionError, InputError

Rules = Mapping[str, str | None]
ORDER = "order and shape"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A layer of the source and its counterpart.

    Attributes:
        source: Where the numbers come from.
        target: Where they go.
        kind: What both are.
        how: Why they belong together: `rule`, `name`, `only one of its shape`, `order`.
    """

    source: Layer
    target: Layer
    kind: Kind
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """All pairs, and what has no counterpart.

    Attributes:
        pairs: In the order of the target.
        unused: Layers of the source.
        missing: Layers of the target.
        outside: Layers of the source that stand outside of the model, such as an averaged copy.
    """

    pairs: tuple[Pair, ...]
    unused: tuple[Layer, ...]
    missing: tuple[Layer, ...]
    outside: tuple[Layer, ...] = ()


def match(source: Side, target: Side, rules: Rules) -> Matching:
    """Find the counterpart of every layer.

    Rules come first, then equal names. What remains is compared by kind and shape: where several
    layers fit several others, by the words in their names, and layers that differ in numbers alone
    by the order of those numbers. That order must not contradict what is known from the shapes.

    Args:
        source: Layers to take numbers from.
        target: Layers to give them to.
        rules: Regular expressions over whole names of source layers or tensors; the replacement is
            the name of a target layer or tensor, or None to leave the layer out.

    Returns:
        Pairs and leftovers.

    Raises:
        InputError: A rule fits nothing, or names something that is not there.
        ConversionError: Shapes disagree under a rule, or the counterpart of a layer is not clear;
            the message names the candidates.
    """
    search = _Search(source, target)
    search.by_rule(rules)
    outside = search.by_name()
    search.by_shape()
    search.check()
    pairs = search.pairs
    order = {id(layer): i for i, layer in enumerate(target.layers)}
    used, left = {id(p.source) for p in pairs}, {id(p.target) for p in pairs}
    aside = search.dropped | {id(x) for x in outside}
    return Matching(
        pairs=tuple(sorted(pairs, key=lambda p: order[id(p.target)])),
        unused=tuple(x for x in source.layers if id(x) not in used | aside),
        missing=tuple(x for x in target.layers if id(x) not in left),
        outside=tuple(x for x in source.layers if id(x) in aside and id(x) not in used),
    )


def common_kind(source: Layer, target: Layer, sides: tuple[Side, Side]) -> Kind | None:
    """What two layers can both be with tensors of equal shape; None if nothing.

    Args:
        source: One layer.
        target: The other.
        sides: Whose layers they are.

    Returns:
        The likeliest kind.
    """
    for kind in source.kinds:
        if kind in target.kinds and _same_shape(kind, (source, target), sides):
            return kind
    return None


def _same_shape(kind: Kind, layers: tuple[Layer, Layer], sides: tuple[Side, Side]) -> bool:
    if kind == "batch_norm":
        left, right = (channels(layer) for layer in layers)
        return left == right
    if kind == "other":
        left, right = ({r: s for r, s in x.shapes.items() if prod(s) > 1} for x in layers)
        return left == right and bool(left)
    shapes = []
    for layer, side in zip(layers, sides, strict=True):
        layout = side.layout(layer, kind)
        shapes.append(None if layout is None else layout.shape(layer.shapes["weight"]))
    return shapes[0] is not None and shapes[0] == shapes[1]


def channels(layer: Layer) -> int:
    """The number of channels of a batch norm."""
    for role in ("running_mean", "weight", "bias"):
        if role in layer.shapes:
            return prod(layer.shapes[role])
    return prod(next(iter(layer.shapes.values()), (0,)))


class _Search:
    """The pairs found so far, and what is still free."""

    def __init__(self, source: Side, target: Side) -> None:
        self.sides = source, target
        self.pairs: list[Pair] = []
        self.free = list(source.layers), list(target.layers)
        self.dropped: set[int] = set()

    def take(self, source: Layer, target: Layer, kind: Kind, how: str) -> None:
        self.pairs.append(Pair(source=source, target=target, kind=kind, how=how))
        for free, layer in zip(self.free, (source, target), strict=True):
            free[:] = [x for x in free if x is not layer]

    def fits(self, source: Layer, target: Layer) -> Kind | None:
        return common_kind(source, target, self.sides)

    def by_rule(self, rules: Rules) -> None:
        for pattern, replacement in rules.items():
            hits = [(x, m) for x in self.free[0] if (m := _rule_hit(pattern, x))]
            if not hits:
                known = ", ".join(repr(x.name) for x in self.sides[0].layers[:12])
                msg = (
                    f"rule {pattern!r}: expected to fit a layer or tensor of the source, got none "
                    f"(each is used once). Its layers: {known}."
                )
                raise InputError(msg)
            for layer, hit in hits:
                if replacement is None:
                    self.dropped.add(id(layer))
                    self.free[0][:] = [x for x in self.free[0] if x is not layer]
                else:
                    self._ruled(layer, _expanded(pattern, hit, replacement))

    def _ruled(self, layer: Layer, name: str) -> None:
        found = [x for x in self.free[1] if name == x.name or name in x.tensors.values()]
        if not found:
            known = ", ".join(repr(x.name) for x in self.free[1][:12])
            msg = (
                f"rule for {layer.name!r}: expected the name of a layer of the target that is "
                f"still free, got {name!r}. Free: {known or 'none'}."
            )
            raise InputError(msg)
        kind = self.fits(layer, found[0])
        if kind is None:
            msg = (
                f"rule for {layer.name!r}: its tensors do not fit {name!r}: expected "
                f"{self._expected(found[0])}, got {self._expected(layer, 0)}. Correct the rule or "
                "build the target as the source is."
            )
            raise ConversionError(msg)
        self.take(layer, found[0], kind, "rule")

    def _expected(self, layer: Layer, side: int = 1) -> str:
        shapes = ", ".join(f"{role} {shape}" for role, shape in layer.shapes.items())
        return f"{'/'.join(layer.kinds)} with {shapes} ({self.sides[side].world.title})"

    def by_name(self) -> tuple[Layer, ...]:
        """Take equal names; returns source layers outside of the model's own part of the file."""
        ours = {_dotted(x.name): x for x in self.free[1]}
        theirs = {_dotted(x.name): x for x in self.free[0]}
        prefix = _best_prefix(theirs, ours)
        same = [(theirs[prefix + n], x) for n, x in ours.items() if prefix + n in theirs]
        kinds: list[Kind | None] = [self.fits(*pair) for pair in same]
        complete = len(same) == len(ours) and all(kinds)
        for (source, target), kind in zip(same, kinds, strict=True):
            wordless = not re.search(r"[A-Za-z]", target.name)
            if kind is not None and (complete or not wordless):
                self.take(source, target, kind, "name")
        if not (prefix and complete):
            return ()
        return tuple(x for x in self.free[0] if not _dotted(x.name).startswith(prefix))

    def by_shape(self) -> None:
        for group in self._groups():
            self._resolve(*group)

    def check(self) -> None:
        """Refuse an order that tears batch norms from their kernels."""
        guessed = {id(p.source) for p in self.pairs if p.how == ORDER}
        found = contradiction([(p.source, p.target) for p in self.pairs], self.sides)
        if found is None or not guessed:
            return
        same = [p for p in self.pairs if p.how == ORDER and self.fits(p.source, found[1])]
        if same:
            why = f"by order, {found[0].name!r} would stand behind another kernel than its own"
            self._refuse([p.source for p in same], [p.target for p in same], why)

    def _groups(self) -> list[tuple[list[Layer], list[Layer]]]:
        """Layers that could be each other's counterparts, in groups without links between them."""
        links = [(s, t) for s in self.free[0] for t in self.free[1] if self.fits(s, t)]
        group: dict[int, int] = {}
        for s, t in links:
            old, new = group.get(id(t)), group.setdefault(id(s), id(s))
            group.setdefault(id(t), new)
            if old is not None and old != new:
                group.update({k: new for k, v in group.items() if v == old})
        found: dict[int, tuple[list[Layer], list[Layer]]] = {}
        for side in (0, 1):
            for layer in self.free[side]:
                if id(layer) in group:
                    found.setdefault(group[id(layer)], ([], []))[side].append(layer)
        return sorted(found.values(), key=lambda g: len(g[0]) + len(g[1]))

    def _resolve(self, sources: list[Layer], targets: list[Layer]) -> None:
        if len(sources) == len(targets) == 1:
            self._take_all(sources, targets, "only one of its shape")
            return
        clusters = _by_words(sources, targets)
        if clusters is None:
            self._refuse(sources, targets, "their names have nothing in common that decides")
        for left, right in clusters or ():
            if len(left) == len(right) == 1:
                self._take_all(left, right, "name and shape")
                continue
            ordered = _in_order(left, ordered=self.sides[0].ordered)
            also = _in_order(right, ordered=self.sides[1].ordered)
            if len(left) != len(right) or ordered is None or also is None:
                why = f"{len(left)} of the source for {len(right)} of the target"
                self._refuse(left, right, why if len(left) != len(right) else "order unknown")
                return
            if _ranks(ordered) != _ranks(also):
                why = "the order of the layers and the numbers in their names contradict each other"
                self._refuse(left, right, why)
                return
            self._check_order(ordered, also)
            self._take_all(ordered, also, ORDER)

    def _take_all(self, sources: list[Layer], targets: list[Layer], how: str) -> None:
        for s, t in zip(sources, targets, strict=True):
            kind = self.fits(s, t)
            if kind is None:
                self._refuse(sources, targets, f"in order, {s.shown()} does not fit {t.shown()}")
                return
            self.take(s, t, kind, how)

    def _check_order(self, sources: list[Layer], targets: list[Layer]) -> None:
        """What shapes prove of the same numbered names must be in order too."""
        kin = {template(x.place) for x in sources}
        known = [(p.source, p.target) for p in self.pairs if template(p.source.place) in kin]
        if self.sides[0].ordered:
            return
        place = {id(x): i for i, x in enumerate(self.sides[1].layers)}
        both = sorted(
            [*known, *zip(sources, targets, strict=True)], key=lambda p: numbers(p[0].name)
        )
        places = [place[id(t)] for _, t in both]
        if places != sorted(places):
            self._refuse(
                sources, targets, "the numbers in the names are not in the order of the target"
            )

    def _refuse(self, sources: Sequence[Layer], targets: Sequence[Layer], why: str) -> None:
        left, right = (", ".join(x.shown() for x in xs[:8]) for xs in (sources, targets))
        msg = (
            f"{self.sides[0].title}: the counterparts of these layers are not clear ({why}): "
            f"{left} could be any of {right}. Pass rules={{'name in the source': 'name in the "
            "target', ...}."
        )
        raise ConversionError(msg)


def _rule_hit(pattern: str, layer: Layer) -> re.Match | None:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        msg = f"rule {pattern!r}: expected a regular expression, got: {error}."
        raise InputError(msg) from error
    for name in (layer.name, *layer.tensors.values()):
        if found := compiled.fullmatch(name):
            return found
    return None


def _expanded(pattern: str, hit: re.Match, replacement: str) -> str:
    try:
        return hit.expand(replacement)
    except (re.error, IndexError) as error:
        msg = f"rule {pattern!r}: its replacement {replacement!r} cannot be filled in: {error}."
        raise InputError(msg) from error


def _dotted(name: str) -> str:
    return name.replace("/", ".")


def _best_prefix(theirs: Iterable[str], ours: Mapping[str, Layer]) -> str:
    """What stands before the target's names in the source, as `module.` does."""
    theirs = set(theirs)
    endings = {n.rpartition(".")[2]: n for n in ours}
    tried = {""}
    for name in theirs:
        probe = endings.get(name.rpartition(".")[2])
        if probe is not None and name.endswith(probe):
            tried.add(name.removesuffix(probe))
    if len(tried) > 1:
        tried = {p for p in tried if not p or p.endswith(".")}
    score: Callable[[str], tuple[int, int]] = lambda p: (  # noqa: E731
        sum(p + n in theirs for n in ours),
        -len(p),
    )
    return max(sorted(tried), key=score)


def _by_words(
    sources: list[Layer], targets: list[Layer]
) -> list[tuple[list[Layer], list[Layer]]] | None:
    """Pair the templates of both sides by common words; None if that is not decisive."""
    left, right = _clusters(sources), _clusters(targets)
    if len(left) == 1 or len(right) == 1:
        return [(sources, targets)]
    pairs: list[tuple[list[Layer], list[Layer]]] = []
    while left and right:
        best = _best(left, right)
        if best is None:
            return None
        pairs.append((left.pop(best[0]), right.pop(best[1])))
    return pairs


def _clusters(layers: list[Layer]) -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(template(layer.place), []).append(layer)
    return found


def _best(left: Mapping[str, list], right: Mapping[str, list]) -> tuple[str, str] | None:
    """The pair of templates that are more alike than either is to any other one."""
    score = {
        (a, b): _alike(words(a), words(b)) + (0.01 if len(left[a]) == len(right[b]) else 0)
        for a in left
        for b in right
    }
    if len(left) == len(right) == 1:
        return next(iter(score))
    for (a, b), value in sorted(score.items(), key=lambda item: -item[1]):
        rivals = [v for (x, y), v in score.items() if (x == a) != (y == b)]
        if value > 0.01 and all(value > v for v in rivals):
            return a, b
    return None


def _alike(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / max(1, len(left | right))


def _in_order(layers: list[Layer], *, ordered: bool) -> list[Layer] | None:
    """The layers in the order in which they were made; None if nothing tells it."""
    if ordered:
        return layers
    if len({template(x.place) for x in layers}) > 1:
        return None
    keys = [numbers(x.place) for x in layers]
    if len(set(keys)) < len(keys):
        return None
    return sorted(layers, key=lambda x: numbers(x.place))


def _ranks(layers: list[Layer]) -> list[int]:
    """Where each layer stands by the numbers in the names; as it is where those tell nothing."""
    keys = [numbers(x.place) for x in layers]
    one = len({template(x.place) for x in layers}) == 1
    if not one or len(set(keys)) < len(keys):
        return list(range(len(layers)))
    return [sorted(keys).index(key) for key in keys]

"""The targets, and whether a run reaches them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from bnkit.bench.results import Check, Measurement, Outcome, Step

_LARGE = 8e6  # bytes; smaller arrays may stay in the cache, and a share of the copy says little


@dataclass(frozen=True)
class Target:
    """A geometric mean of ratios, over all shapes.

    Attributes:
        what: In words.
        operator: Which operator.
        direction: Which pass.
        formats: Memory formats that are averaged.
        wanted: The smallest good ratio, by provider.
        floor: No single ratio against torch may lie below it.
    """

    what: str
    operator: str
    direction: str
    formats: tuple[str, ...]
    wanted: dict[str, float]
    floor: float | None = None

    def takes(self, m: Measurement) -> bool:
        """Whether a measurement belongs to this target."""
        return (
            (m.operator, m.direction) == (self.operator, self.direction)
            and m.memory_format in self.formats
            and m.network != "tiny"
        )


_BOTH = ("contiguous", "channels_last")
TARGETS = (
    Target("forward, contiguous", "bn", "forward", _BOTH[:1], {"torch": 6, "compile": 2.5}),
    Target(
        "forward, channels_last",
        "bn",
        "forward",
        _BOTH[1:],
        {"torch": 2, "compile": 2},
        1.0,
    ),
    Target("backward, contiguous", "bn", "backward", _BOTH[:1], {"torch": 1.7, "compile": 1.3}),
    Target("backward, channels_last", "bn", "backward", _BOTH[1:], {"torch": 1.3, "compile": 1.3}),
    Target(
        "BN+ReLU, both passes",
        "bn_relu",
        "forward_backward",
        _BOTH,
        {"torch": 3, "compile": 1.5},
    ),
    Target(
        "BN+add+ReLU, both passes",
        "bn_add_relu",
        "forward_backward",
        _BOTH,
        {"torch": 3.5, "compile": 1.5},
    ),
)


def outcomes(
    measurements: Sequence[Measurement], steps: Sequence[Step], checks: Sequence[Check]
) -> tuple[Outcome, ...]:
    """Judge a run.

    Args:
        measurements: Single layers.
        steps: Whole networks.
        checks: What the gate compared.

    Returns:
        The rows of the table, in the order of the targets.
    """
    rows = []
    for target in TARGETS:
        found = [m for m in measurements if target.takes(m)]
        rows += [_against(target, provider, found) for provider in target.wanted]
    shares = [m for m in measurements if _is_large_forward(m)]
    rows += [_share(shares, "copy"), _share(shares, "copy_new")]
    rows += _compiled(measurements)
    rows += _networks(steps)
    rows.append(_tiny(measurements))
    rows.append(_accuracy(checks))
    return tuple(rows)


def mean_ratio(measurements: Iterable[Measurement], provider: str) -> float | None:
    """Geometric mean of the ratios against a provider, or None without any.

    Args:
        measurements: What to average over.
        provider: "torch" or "compile".

    Returns:
        The mean over the measurements in which that provider ran.
    """
    ratios = [r for m in measurements if (r := m.ratio(provider)) is not None]
    return geometric_mean(ratios) if ratios else None


def _against(target: Target, provider: str, found: list[Measurement]) -> Outcome:
    wanted = target.wanted[provider]
    floor = target.floor if provider == "torch" else None
    words = f">= {wanted:g}" + ("" if floor is None else f", each >= {floor:g}")
    mean = mean_ratio(found, provider)
    if mean is None:
        return Outcome(target.what, provider, words, None, "x", None, _why(found, provider))
    ratios = [r for m in found if (r := m.ratio(provider)) is not None]
    passed = mean >= wanted and (floor is None or min(ratios) >= floor)
    note = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)}"
    ceilings = [c for m in found if (c := m.ceiling(provider)) is not None]
    if ceilings:
        note += f"; {geometric_mean(ceilings):.1f} at copy speed"
    return Outcome(target.what, provider, words, mean, "x", passed, note)


def _why(found: list[Measurement], provider: str) -> str:
    reasons = [x.reason for m in found for x in m.missing if x.provider == provider]
    return reasons[0] if reasons else "not measured in this run"


def _is_large_forward(m: Measurement) -> bool:
    return (m.operator, m.direction) == ("bn", "forward") and m.array_bytes > _LARGE


def _share(found: list[Measurement], copy: str) -> Outcome:
    what = "forward over 8 MB, of copy bandwidth"
    against = {"copy": "copy", "copy_new": "new copy"}[copy]
    shares = [s for m in found if (s := m.share(copy)) is not None]
    wanted = ">= 45 %" if copy == "copy" else "-"
    if not shares:
        return Outcome(what, against, wanted, None, "%", None, "no array over 8 MB in this run")
    mean = 100 * geometric_mean(shares)
    note = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} over {len(shares)}"
    return Outcome(what, against, wanted, mean, "%", mean >= 45 if copy == "copy" else None, note)


def _compiled(measurements: Sequence[Measurement]) -> list[Outcome]:
    """How bnkit does under torch.compile beside torch.nn under torch.compile, where it was run."""
    ratios = []
    for m in measurements:
        theirs, ours = m.seconds("compile"), m.seconds("bnkit_compile")
        if theirs is not None and ours is not None and m.network != "tiny":
            ratios.append(theirs / ours)
    if not ratios:
        return []
    mean, note = (
        geometric_mean(ratios),
        f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)}",
    )
    what = "bnkit under compile, all passes"
    return [Outcome(what, "compile", ">= 1", mean, "x", mean >= 1, note)]


def _networks(steps: Sequence[Step]) -> list[Outcome]:
    rows: list[Outcome] = []
    words: dict[str, str] = {"bnkit": "replace_", "bnkit_fused": "fused"}
    for step in steps:
        for provider, name in words.items():
            ratio = step.ratio(provider)
            what = f"{step.network}, {step.memory_format}, {name}"
            rows.append(Outcome(what, "torch", "> 1", ratio, "x", ratio > 1))
    return rows


def _tiny(measurements: Sequence[Measurement]) -> Outcome:
    what, wanted = "time of a forward on (32, 64)", "<= 1.3"
    pick: Callable[[Measurement], bool] = lambda m: (m.network, m.direction) == ("tiny", "forward")  # noqa: E731
    ratio = mean_ratio(filter(pick, measurements), "torch")
    if ratio is None:
        return Outcome(what, "torch", wanted, None, "x", None, "not measured in this run")
    return Outcome(what, "torch", wanted, 1 / ratio, "x", 1 / ratio <= 1.3)


def _accuracy(checks: Sequence[Check]) -> Outcome:
    what, wanted = "largest error against float64", "<= 2"
    ratios = [c.error / c.torch for c in checks if c.torch > 0]
    if not ratios:
        return Outcome(what, "torch", wanted, None, "x", None, "not measured in this run")
    beyond = sum(not c.within_twice for c in checks)
    note = f"{beyond} of {len(checks)} above 2, all below the float32 bound"
    return Outcome(what, "torch", wanted, max(ratios), "x", beyond == 0, note)

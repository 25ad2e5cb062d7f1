"""The rows of the tables, from the JSON document alone: what is shown can be shown again."""

from collections.abc import Iterable, Mapping
from statistics import geometric_mean
from typing import Any, NamedTuple

from bnkit.bench.quiet import LIMIT

Document = Mapping[str, Any]

HEADS = ("what", "against", "target", "measured", "verdict", "range")
LAYER_HEADS = (
    "network",
    "input",
    "format",
    "operator",
    "direction",
    "torch ms",
    "compile ms",
    "bnkit ms",
    "x torch",
    "x compile",
    "of copy",
)


class Verdict(NamedTuple):
    """One row of the table of targets, and whether it is reached."""

    cells: tuple[str, ...]
    passed: bool | None


def verdicts(document: Document) -> list[Verdict]:
    """The rows of the table of targets.

    Args:
        document: What `Report.to_dict` returns.

    Returns:
        A row for each target.
    """
    words = {True: "pass", False: "falls short", None: "-"}
    return [
        Verdict(
            (
                o["what"],
                o["against"],
                o["wanted"],
                _number(o["measured"], o["unit"]),
                words[o["passed"]],
                o["note"],
            ),
            o["passed"],
        )
        for o in document["outcomes"]
    ]


def layers(document: Document) -> list[tuple[str, ...]]:
    """A row for each measurement of a layer; "~" marks one that others disturbed.

    Args:
        document: What `Report.to_dict` returns.

    Returns:
        Cells in the order of `LAYER_HEADS`.
    """
    rows = []
    for m in document["measurements"]:
        seconds = seconds_of(m)
        ours = seconds["bnkit"]
        times = (seconds.get(name) for name in ("torch", "compile", "bnkit"))
        ratios = (seconds.get(name) for name in ("torch", "compile"))
        rows.append(
            (
                m["network"],
                "x".join(map(str, m["sizes"])),
                m["memory_format"],
                m["operator"],
                m["direction"] + ("~" if (m["others"] or 0) > LIMIT else ""),
                *("-" if t is None else f"{t * 1e3:.3g}" for t in times),
                *("-" if t is None else f"{t / ours:.2f}" for t in ratios),
                f"{100 * bandwidth(m, 'bnkit') / bandwidth(m, 'copy'):.0f} %",
            )
        )
    return rows


def steps(document: Document) -> list[tuple[str, ...]]:
    """A row for each network: times and ratios.

    Args:
        document: What `Report.to_dict` returns.

    Returns:
        Network, format, ms of torch, of `replace_`, of the fused layers, and both ratios.
    """
    rows = []
    for s in document["steps"]:
        seconds = seconds_of(s)
        mark = "~" if (s["others"] or 0) > LIMIT else ""
        names = ("torch", "bnkit", "bnkit_fused")
        times = (f"{seconds[name] * 1e3:.1f}" for name in names)
        ratios = (f"{seconds['torch'] / seconds[name]:.2f}" for name in names[1:])
        rows.append((s["network"], s["memory_format"] + mark, *times, *ratios))
    return rows


def by_network(document: Document) -> list[tuple[str, ...]]:
    """Geometric means of the ratios against torch, for each network of the suite.

    Args:
        document: What `Report.to_dict` returns.

    Returns:
        Network, format, and the means of training forward, backward, BN+ReLU, BN+add+ReLU.
    """
    kinds = (
        ("bn", "forward"),
        ("bn", "backward"),
        ("bn_relu", "forward_backward"),
        ("bn_add_relu", "forward_backward"),
    )
    found: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    for m in document["measurements"]:
        seconds = seconds_of(m)
        kind = m["operator"], m["direction"]
        place = found.setdefault((m["network"], m["memory_format"]), {})
        place.setdefault(kind, []).append(seconds["torch"] / seconds["bnkit"])
    return [
        (*key, *(f"{geometric_mean(place[k]):.2f}" if k in place else "-" for k in kinds))
        for key, place in found.items()
        if key[0] != "tiny"
    ]


def seconds_of(item: Document) -> dict[str, float]:
    """Median seconds by provider.

    Args:
        item: A measurement or a step.

    Returns:
        The medians.
    """
    return {t["provider"]: t["seconds"] for t in item["timings"]}


def bandwidth(measurement: Document, provider: str) -> float:
    """Bytes a second: the floor of the operator, or what a copy moves.

    Args:
        measurement: One measurement.
        provider: One of its providers.

    Returns:
        Bytes a second.
    """
    copied = provider.startswith("copy")
    size = 2 * measurement["array_bytes"] if copied else measurement["floor_bytes"]
    return size / seconds_of(measurement)[provider]


def disturbed(document: Document) -> tuple[int, int]:
    """How many comparisons others disturbed, and how many there are.

    Args:
        document: What `Report.to_dict` returns.

    Returns:
        Both counts.
    """
    shares: Iterable[float | None] = [
        item["others"] for item in (*document["measurements"], *document["steps"])
    ]
    return sum((share or 0) > LIMIT for share in shares), len(list(shares))


def machine(document: Document) -> str:
    """The machine in one line.

    Args:
        document: What `Report.to_dict` returns.

    Returns:
        Processor, cores, threads, memory, versions, commit.
    """
    m = document["machine"]
    memory = "" if m["memory_gib"] is None else f", {m['memory_gib']:.0f} GiB"
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    commit = "" if m["git"] is None else f", commit {m['git']}"
    return (
        f"{m['cpu']}, {m['cores']} cores{memory}, {m['system']}; {m['threads']} threads; "
        f"{versions}{commit}"
    )


def _number(measured: float | None, unit: str) -> str:
    if measured is None:
        return "-"
    return f"{measured:.0f} %" if unit == "%" else f"{measured:.2f}"

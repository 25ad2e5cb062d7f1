"""The generated part of the manual's page about performance."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bnkit.bench import summary
from bnkit.core.errors import InputError
from bnkit.core.files import write_text

BEGIN = "<!-- bnkit bench: begin -->"
END = "<!-- bnkit bench: end -->"


def check_page(path: Path) -> None:
    """Refuse a page without the two marks.

    Args:
        path: A Markdown file.

    Raises:
        InputError: It cannot be read, or the marks are not there once, in order.
    """
    _split(path)


def write_page(document: Mapping[str, Any], path: Path) -> Path:
    """Replace what stands between the marks.

    Args:
        document: What `Report.to_dict` returns.
        path: A Markdown file with both marks.

    Returns:
        `path`.
    """
    before, after = _split(path)
    text = f"{before}{BEGIN}\n\n{section(document)}\n{END}{after}"
    return write_text(path, text)


def section(document: Mapping[str, Any]) -> str:
    """The numbers of a run in Markdown.

    Args:
        document: What `Report.to_dict` returns.

    Returns:
        Machine, targets, networks, layers.
    """
    bad, total = summary.disturbed(document)
    load = document["machine"]["load_before"]
    words = "" if load is None else f" The load before it was {load:.1f}."
    parts = [
        f"Run of {document['date']}, level `{document['level']}`, {document['seconds']:.0f} s."
        f"{words} Other processes took more than a tenth of the processor during {bad} of "
        f"{total} comparisons (marked ~).",
        f"Machine: {summary.machine(document)}.",
        "### Targets",
        _table(
            ("what", "against", "target", "measured", "verdict", "range"),
            (v.cells for v in summary.verdicts(document)),
        ),
        "### Whole training steps, milliseconds",
        _table(
            ("network", "format", "torch.nn", "replace_", "fused", "x replace_", "x fused"),
            summary.steps(document),
        ),
        "### By network: how many times faster than torch eager",
        _table(
            ("network", "format", "forward", "backward", "BN+ReLU", "BN+add+ReLU"),
            summary.by_network(document),
        ),
        "### Every measurement",
        _table(summary.LAYER_HEADS, summary.layers(document)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _split(path: Path) -> tuple[str, str]:
    expected = f"{str(path)!r}: expected a Markdown page with {BEGIN!r} and {END!r}, once each"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"{expected}, got: {error.strerror or error}."
        raise InputError(msg) from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        msg = f"{expected}, in this order. Write both where the numbers are to stand."
        raise InputError(msg)
    before, _, rest = text.partition(BEGIN)
    return before, rest.partition(END)[2]

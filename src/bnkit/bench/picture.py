"""The picture: how near each kernel comes to the roof, which is a plain copy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnkit.bench.summary import bandwidth, seconds_of
from bnkit.core.errors import InputError
from bnkit.core.files import write_whole

KINDS = ("png", "svg", "pdf")
_STYLES = {
    "torch": ("o", "#d55e00", "torch"),
    "compile": ("^", "#009e73", "torch.compile"),
    "bnkit": ("s", "#0072b2", "bnkit"),
}
_PANELS = tuple((d, f) for d in ("forward", "backward") for f in ("contiguous", "channels_last"))


def check_kind(path: Path) -> None:
    """Refuse a file name whose ending is no kind of picture.

    Args:
        path: The file.

    Raises:
        InputError: Another ending than .png, .svg or .pdf.
    """
    if path.suffix.lstrip(".").lower() not in KINDS:
        msg = f"{str(path)!r}: expected a name that ends in .png, .svg or .pdf."
        raise InputError(msg)


def draw(document: Mapping[str, Any]) -> Figure:
    """Bytes a second over the size of the array, one panel for each direction and format.

    Args:
        document: What `Report.to_dict` returns.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(11.0, 7.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for ax, (direction, memory_format) in zip(panels.flat, _PANELS, strict=True):
        found = [
            m
            for m in document["measurements"]
            if (m["operator"], m["direction"], m["memory_format"])
            == ("bn", direction, memory_format)
            and m["network"] != "tiny"
        ]
        _panel(ax, sorted(found, key=lambda m: m["array_bytes"]))
        ax.set_title(f"training {direction}, {memory_format}", fontsize=10)
    for ax in panels[-1]:
        ax.set_xlabel("MB of the input array")
    for ax in panels[:, 0]:
        ax.set_ylabel("GB/s, bytes by the floor")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    threads, cpu = document["machine"]["threads"], document["machine"]["cpu"]
    figure.suptitle(f"Batch norm under the roof of a plain copy: {cpu}, {threads} threads")
    return figure


def write_picture(document: Mapping[str, Any], path: Path) -> Path:
    """Draw into a file.

    Args:
        document: What `Report.to_dict` returns.
        path: A name that ends in .png, .svg or .pdf.

    Returns:
        `path`.
    """
    check_kind(path)
    figure, kind = draw(document), path.suffix.lstrip(".").lower()
    return write_whole(path, lambda t: figure.savefig(t, format=kind, dpi=120))


def _panel(ax: Axes, found: list[Mapping[str, Any]]) -> None:
    for name, dashes in (("copy", "-"), ("copy_new", ":")):
        label = "copy" if name == "copy" else "copy into a new array"
        points = [(m["array_bytes"] / 1e6, bandwidth(m, name) / 1e9) for m in found]
        ax.plot(*_columns(points), dashes, color="#57606b", label=label)
    for name, (marker, color, label) in _STYLES.items():
        points = [
            (m["array_bytes"] / 1e6, bandwidth(m, name) / 1e9)
            for m in found
            if name in seconds_of(m)
        ]
        ax.plot(*_columns(points), marker, color=color, label=label, markersize=6)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(visible=True, which="major", color="#dfe2e0", linewidth=0.8)


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]

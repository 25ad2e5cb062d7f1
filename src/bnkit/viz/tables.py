"""The ablation as a heat table, and the modes of one network as bars."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from bnkit.lab.shares import percent
from bnkit.viz.style import GROUND, HATCH, INK, LINE, WITH_BN, WITHOUT_BN, calm, look_of, own_axes

_HEAT = LinearSegmentedColormap.from_list("bnkit_heat", ["#004f82", "#f1f2ef"])
# White and black text have the same contrast, 4.6, on the colour at this place of the map.
_DARK_BELOW = 0.27
_PALEST = 0.88  # the place of a median just below the limit: still seen to be blue
_KEY = (
    "accuracy on the test images\nblue: as they should be used; grey: within 5 points of that; "
    "orange: further below"
)
_INITS = {"normal": "N(0, 1)", "he": "He", "xavier": "Xavier"}


def plot_ablation(
    ablation: Mapping[str, Any], ax: Axes | None = None, *, limit: float = float("inf")
) -> Axes:
    """Draw the final cost over initialization and learning rate: a colour and a number per cell.

    Args:
        ablation: `results["mofan"]["ablation"]`.
        ax: Axes to draw into; those of a new figure by default.
        limit: Cost of the best constant: a cell that is not below it is not blue.

    Returns:
        The axes. A hatched cell says how many of its runs did not stay finite.
    """
    rows, lrs = ablation["rows"], ablation["lrs"]
    ax = own_axes(ax, width=1.3 * len(lrs) + 2.2, height=0.5 * len(rows) + 1.2)
    place_of = _places([cell["median"] for row in rows for cell in row["cells"]], limit)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row["cells"]):
            place = None if cell["median"] is None else place_of(cell["median"])
            _cell(ax, (x, y), cell, place)
    ax.set(xlim=(-0.5, len(lrs) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xticks(range(len(lrs)), [f"lr {lr:g}" for lr in lrs])
    ax.set_yticks(range(len(rows)), [_row_name(row) for row in rows])
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_color(look_of(batch_norm=row["batch_norm"]).text)
    ax.tick_params(length=0, labelsize=9)
    ax.xaxis.tick_top()
    for spine in ax.spines.values():
        spine.set_visible(False)
    below = f"\nblue: below the best constant, {_short(limit)}" if np.isfinite(limit) else ""
    ax.set_title(
        f"median final cost over {ablation['seeds']} seeds [runs that did not stay finite]{below}",
        fontsize=10,
        color=INK,
    )
    return ax


def plot_modes(twins: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw the mean accuracy of the trained networks in each mode of use, best first.

    Args:
        twins: The part `twins` of the results.
        ax: Axes to draw into; those of a new figure by default.

    Returns:
        The axes; bars are means over the seeds, whiskers are standard deviations.
    """
    rows = sorted(twins["mode"]["rows"], key=lambda row: -row["accuracy"])
    ax = own_axes(ax, width=8.0, height=0.42 * len(rows) + 1.2)
    right = next((row["accuracy"] for row in rows if row["id"] == "eval"), rows[0]["accuracy"])
    for y, row in enumerate(rows):
        color = WITHOUT_BN.color if row["accuracy"] < right - 0.05 else HATCH
        color = WITH_BN.color if row["id"] == "eval" else color
        ax.barh(y, row["accuracy"], xerr=row["sd"], height=0.62, color=color,
                error_kw={"ecolor": INK, "capsize": 3})  # fmt: skip
        ax.annotate(
            percent(row["accuracy"], 1),
            (1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    calm(ax)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x", color=LINE, linewidth=0.8)
    ax.set_yticks(range(len(rows)), [row["name"]["en"] for row in rows])
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), xlabel=_KEY)
    ax.set_title(
        f"the trained networks (mean of {rows[0]['runs']}), judged in several modes",
        fontsize=10,
        color=INK,
    )
    return ax


def _places(medians: Sequence[float | None], limit: float) -> Callable[[float], float]:
    """Where a median lies between the lowest one, 0, and those that are not tinted, 1."""
    known = [m for m in medians if m is not None and 0 < m < limit]
    if not known:
        return lambda _: 1.0
    low = min(known)
    high = limit if np.isfinite(limit) else max(known)
    span = np.log(high / low) or 1.0
    return lambda m: 1.0 if m >= limit else _PALEST * max(0.0, float(np.log(m / low) / span))


def _cell(ax: Axes, at: tuple[int, int], cell: Mapping[str, Any], place: float | None) -> None:
    """Fill one cell; `place` is 0 for the lowest median of the table and 1 for no colour."""
    x, y = at
    box = Rectangle((x - 0.48, y - 0.46), 0.96, 0.92)
    if place is None:
        box.set(facecolor=GROUND, edgecolor=HATCH, hatch="////", linewidth=0)
        text, color = f"∞ [{cell['nonfinite']}]", INK
    else:
        box.set(facecolor=_HEAT(place), linewidth=0)
        some = f" [{cell['nonfinite']}]" if cell["nonfinite"] else ""
        text, color = f"{_short(cell['median'])}{some}", "white" if place < _DARK_BELOW else "black"
    ax.add_patch(box)
    plate = {"facecolor": GROUND, "linewidth": 0, "pad": 1.5} if place is None else None
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color=color, bbox=plate)


def _short(value: float) -> str:
    return f"{value:.0f}" if 1000 <= value < 1e5 else f"{value:#.3g}".removesuffix(".")


def _row_name(row: Mapping[str, Any]) -> str:
    init = _INITS.get(row["init"], row["init"])
    return f"{row['activation']} · {init} · {look_of(batch_norm=row['batch_norm']).name}"

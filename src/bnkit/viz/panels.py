"""The two rows of histograms: the values that enter each layer, without and with batch norm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from bnkit.core.errors import InputError
from bnkit.lab.shares import percent
from bnkit.viz.style import GROUND, HATCH, INK, LINE, MUTED, badges, look_of


def runs_of(mofan: Mapping[str, Any], activation: str) -> list[Mapping[str, Any]]:
    """Return the runs of one activation, the one without batch norm first.

    Args:
        mofan: The part `mofan` of the results.
        activation: `relu` or `tanh`.

    Returns:
        The runs, in the order of the rows of the figure.

    Raises:
        InputError: No run has that activation.
    """
    runs = [run for run in mofan["runs"] if run["activation"] == activation]
    if not runs:
        known = ", ".join(sorted({run["activation"] for run in mofan["runs"]}))
        msg = f"activation: expected one of {known}, got {activation!r}."
        raise InputError(msg)
    return sorted(runs, key=lambda run: run["batch_norm"])


def plot_mofan_panels(
    mofan: Mapping[str, Any],
    activation: str,
    step: int,
    fig: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw the histograms of every layer at one step: two rows, one column per layer.

    Bars are counts. All panels share one vertical scale in shares of the entries. A panel without
    a finite value is hatched and names what it holds; it has no bars.

    Args:
        mofan: The part `mofan` of the results.
        activation: `relu` or `tanh`.
        step: One of the recorded steps.
        fig: A figure or subfigure to draw into; a new one by default.

    Returns:
        The figure; its axes run along the rows.

    Raises:
        InputError: The step was not recorded, or the activation is unknown.
    """
    runs = runs_of(mofan, activation)
    if step not in mofan["record_steps"]:
        known = ", ".join(str(known) for known in mofan["record_steps"])
        msg = f"step: expected one of {known}, got {step!r}."
        raise InputError(msg)
    columns = len(runs[0]["layers"])
    if fig is None:
        fig = Figure(figsize=(1.55 * columns, 1.75 * len(runs) + 0.4), layout="constrained")
    grid = np.atleast_2d(fig.subplots(len(runs), columns))
    top = _share_top(runs)
    for row, run in enumerate(runs):
        for column, layer in enumerate(run["layers"]):
            record = next(r for r in layer["records"] if r["step"] == step)
            ax = grid[row, column]
            _panel(ax, layer, record, top=top, color=look_of(batch_norm=run["batch_norm"]).color)
            if row == 0:
                name = "input" if layer["layer"] == 0 else f"layer {layer['layer']}"
                ax.set_title(name, fontsize=9, color=MUTED)
        look = look_of(batch_norm=run["batch_norm"])
        grid[row, 0].set_ylabel(look.name, color=look.text, fontweight="bold")
    fig.suptitle(
        f"{activation}, step {step}: the values that enter each layer", color=INK, fontsize=11
    )
    return fig


def plot_mofan_steps(mofan: Mapping[str, Any], activation: str) -> Figure:
    """Draw the histograms of every recorded step, stacked in one figure.

    Args:
        mofan: The part `mofan` of the results.
        activation: `relu` or `tanh`.

    Returns:
        A figure with one subfigure per recorded step.
    """
    steps = mofan["record_steps"]
    columns = len(runs_of(mofan, activation)[0]["layers"])
    fig = Figure(figsize=(1.55 * columns, 3.6 * len(steps)), layout="constrained")
    parts = np.atleast_1d(np.asarray(fig.subfigures(len(steps), 1), dtype=object))
    for part, step in zip(parts, steps, strict=True):
        plot_mofan_panels(mofan, activation, step, fig=part)
    return fig


def _share_top(runs: list[Mapping[str, Any]]) -> float:
    """Return the top of the shared vertical scale, in shares of the entries."""
    shares = [
        max(record["counts"]) / record["entries"]
        for run in runs
        for layer in run["layers"]
        for record in layer["records"]
    ]
    return min(1.0, float(np.ceil(max(0.1, *shares) * 10) / 10))


def _panel(
    ax: Axes, layer: Mapping[str, Any], record: Mapping[str, Any], *, top: float, color: str
) -> None:
    edges = layer["edges"]
    empty = record["nonfinite"] >= 1
    if empty:
        _blank(ax, record)
    else:
        ax.bar(edges[:-1], record["counts"], np.diff(edges), align="edge", color=color,
               edgecolor="white", linewidth=0.4)  # fmt: skip
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(0, top * record["entries"])
    ax.set_yticks([])
    ax.set_xticks([edges[0], 0, edges[-1]], [f"{edges[0]:g}", "0", f"{edges[-1]:g}"])
    ax.tick_params(colors=MUTED, labelsize=7, length=2)
    for side in ("top", "right", "left"):
        ax.spines[side].set_color(LINE)
    ax.spines["bottom"].set_color(HATCH)
    words = [badge for badge in badges(record) if not (empty and badge.startswith(("NaN", "∞")))]
    if words:
        ax.set_xlabel("\n".join(words), fontsize=7.5, color=INK)


def _blank(ax: Axes, record: Mapping[str, Any]) -> None:
    """Hatch a panel that has nothing to draw, and say what its entries are."""
    ax.patch.set(facecolor=GROUND, edgecolor=HATCH, hatch="////", linewidth=0)
    names = ["NaN"] if record["nan"] else []
    names += ["∞"] if record["posinf"] + record["neginf"] else []
    ax.text(
        0.5,
        0.5,
        f"{' '.join(names)}\n{percent(record['nonfinite'])}",
        transform=ax.transAxes,
        ha="center",
        va="center",
        fontsize=12,
        fontweight="bold",
        color=look_of(batch_norm=False).text,
        bbox={"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": HATCH},
    )

"""Curves over training steps; a run that stops being finite ends in a cross."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bnkit.core.errors import InputError
from bnkit.viz.panels import runs_of
from bnkit.viz.style import MUTED, Look, calm, look_of, own_axes

_FIELDS = {"train_loss": "training loss", "val_accuracy": "validation accuracy"}


def plot_cost(mofan: Mapping[str, Any], activation: str, ax: Axes | None = None) -> Axes:
    """Draw the cost of both networks over the steps, on a logarithmic scale.

    Args:
        mofan: The part `mofan` of the results.
        activation: `relu` or `tanh`.
        ax: Axes to draw into; those of a new figure by default.

    Returns:
        The axes. A cross marks the last finite cost of a run that left the finite numbers, or
        stands at the top edge, at the first record, where there was none.
    """
    ax = own_axes(ax)
    ax.set_yscale("log")
    for run in runs_of(mofan, activation):
        cost = run["cost"]
        look = look_of(batch_norm=run["batch_norm"])
        label = look.name + _story(cost)
        _curve(ax, cost["steps"], cost["values"], look=look, label=label, linewidth=2.2)
    for key, name in (("noise_variance", "variance of the noise"),
                      ("best_constant", "best constant")):  # fmt: skip
        _reference(ax, mofan["reference"].get(key), name)
    calm(ax)
    ax.set(xlabel="step", ylabel="mean squared error", title=f"cost, {activation}")
    ax.legend(frameon=False, fontsize=9)
    return ax


def plot_twins(twins: Mapping[str, Any], field: str = "train_loss", ax: Axes | None = None) -> Axes:
    """Draw one quantity of the twin networks: every seed thin, the median thick.

    Args:
        twins: The part `twins` of the results.
        field: `train_loss` (logarithmic) or `val_accuracy`.
        ax: Axes to draw into; those of a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: The field is unknown.
    """
    if field not in _FIELDS:
        msg = f"field: expected one of {', '.join(_FIELDS)}, got {field!r}."
        raise InputError(msg)
    ax = own_axes(ax)
    if field == "train_loss":
        ax.set_yscale("log")
    for arm in twins["arms"]:
        look = look_of(batch_norm=arm["id"] == "bn")
        for run in arm["runs"]:
            _curve(ax, run["steps"], run[field], look=look, linewidth=0.8, alpha=0.5)
        steps = arm["runs"][0]["steps"]
        middle = _median([run[field] for run in arm["runs"]])
        ax.plot(steps, middle, color=look.color, linestyle=look.dashes, linewidth=2.2,
                label=arm["name"]["en"])  # fmt: skip
    calm(ax)
    ax.set(xlabel="step", ylabel=_FIELDS[field], title=_FIELDS[field])
    ax.legend(frameon=False, fontsize=9)
    return ax


def _curve(
    ax: Axes,
    steps: Sequence[int],
    values: Sequence[float | None],
    *,
    look: Look,
    **style: Any,
) -> None:
    """Draw the finite stretches of one run, with a cross where each of them breaks off."""
    heights = np.array([np.nan if value is None else value for value in values], dtype=float)
    ax.plot(steps, heights, color=look.color, linestyle=look.dashes, **style)
    finite = np.isfinite(heights)
    if finite.all():
        return
    cross = {"marker": "x", "linestyle": "none", "color": look.text, "markersize": 9,
             "markeredgewidth": 2.2, "clip_on": False}  # fmt: skip
    lost = np.flatnonzero(finite[:-1] & ~finite[1:])
    if lost.size:
        ax.plot(np.asarray(steps)[lost], heights[lost], **cross)
    if not finite[0]:
        ax.plot([steps[0]], [1.0], transform=ax.get_xaxis_transform(), **cross)


def _story(cost: Mapping[str, Any]) -> str:
    """Return when a cost became infinite and NaN, as the end of a label."""
    words = []
    states, steps = list(cost["state"]), cost["steps"]
    inf, nan = (states.index(s) if s in states else None for s in ("inf", "nan"))
    if inf is not None:
        words.append(f"∞ at step {steps[inf]}")
    if nan is not None and inf is not None and nan == inf + 1:
        words.append(f"NaN at the next record, step {steps[nan]}")
    elif nan is not None:
        words.append(f"NaN from the record at step {steps[nan]} on")
    return f" ({', '.join(words)})" if words else ""


def _median(runs: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Return the median over the runs at each step; NaN where half of them or more have none."""
    table = np.array([[np.nan if value is None else value for value in run] for run in runs])
    out = np.full(table.shape[1], np.nan)
    known = np.isfinite(table).sum(axis=0) * 2 > len(runs)
    out[known] = np.nanmedian(table[:, known], axis=0)
    return out


def _reference(ax: Axes, value: float | None, name: str) -> None:
    if value is None:
        return
    ax.axhline(value, color=MUTED, linestyle=":", linewidth=1.2)
    ax.annotate(
        f"{name} {value:.3g}",
        (1.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=MUTED,
    )

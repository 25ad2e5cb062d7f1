"""Colours, words and axes that all figures share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnkit.lab.shares import percent

INK = "#1b1f24"
MUTED = "#57606b"
LINE = "#dfe2e0"
HATCH = "#8b949e"
GROUND = "#f1f2ef"


@dataclass(frozen=True)
class Look:
    """How one of the two networks is drawn: a colour of Okabe and Ito, a line style, a name."""

    color: str
    text: str
    dashes: Any
    name: str


WITH_BN = Look("#0072b2", "#005f96", "-", "BN")
WITHOUT_BN = Look("#d55e00", "#a84400", (0, (5, 2)), "no BN")


def look_of(*, batch_norm: bool) -> Look:
    """Return how the network with or without batch norm is drawn.

    Args:
        batch_norm: Whether the network has batch norm.

    Returns:
        Its look, the same in every figure.
    """
    return WITH_BN if batch_norm else WITHOUT_BN


def badges(record: Mapping[str, Any]) -> list[str]:
    """Return the badges of one histogram: what the bars cannot show.

    Args:
        record: One record of a layer at one step.

    Returns:
        Texts such as `NaN 100 %` or `dead 43 %`; nothing for a share of zero.

    Example:
        >>> badges({"nan": 5, "posinf": 0, "neginf": 0, "entries": 10, "outside": 0.2,
        ...         "dead": None, "saturated": 0.0})
        ['NaN 50 %', 'outside 20 %']
    """
    entries = record["entries"]
    shares = {
        "NaN": record["nan"] / entries,
        "∞": (record["posinf"] + record["neginf"]) / entries,
        "outside": record["outside"],
        "dead": record["dead"],
        "saturated": record["saturated"],
    }
    return [f"{name} {percent(share)}" for name, share in shares.items() if share]


def own_axes(ax: Axes | None, *, width: float = 7.0, height: float = 4.0) -> Axes:
    """Return `ax`, or the axes of a new figure of the given size in inches.

    The figure is made without pyplot, so that nothing global keeps it alive and no window system
    is asked for.

    Args:
        ax: The caller's axes, if any.
        width: Width of a new figure, in inches.
        height: Height of a new figure, in inches.

    Returns:
        The axes to draw into.
    """
    if ax is not None:
        return ax
    return Figure(figsize=(width, height), layout="constrained").subplots()


def calm(ax: Axes) -> None:
    """Leave of the frame what carries information.

    Args:
        ax: The axes to restyle.
    """
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(HATCH)
    ax.tick_params(colors=MUTED, labelsize=9, length=3)
    ax.grid(visible=True, axis="y", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)

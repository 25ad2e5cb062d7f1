"""The figures of one results document, as files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bnkit.core.errors import InputError, OutputError
from bnkit.core.files import replacing, what_to_do
from bnkit.viz.curves import plot_cost, plot_twins
from bnkit.viz.panels import plot_mofan_steps
from bnkit.viz.tables import plot_ablation, plot_modes

_FORMATS = ("png", "svg", "pdf")
_DPI = 120


def save_figures(
    results: Mapping[str, Any], folder: Path, *, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Write every figure of `results` into `folder`; each file is complete or is not there.

    Args:
        results: The document that `bnkit demo` or `bnkit lab mofan` writes as `results.json`.
        folder: Where the files go; made if it does not exist.
        formats: Some of `png`, `svg` and `pdf`.

    Returns:
        The files, in the order of the page.

    Raises:
        InputError: A format is unknown.
        OutputError: The folder cannot be written.
    """
    unknown = [name for name in formats if name not in _FORMATS]
    if unknown:
        msg = f"formats: expected some of {', '.join(_FORMATS)}, got {unknown[0]!r}."
        raise InputError(msg)
    folder = Path(folder)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in _figures(results):
            for kind in formats:
                path = folder / f"{name}.{kind}"
                _save(figure, path, kind)
                written.append(path)
    except OSError as error:
        msg = (
            f"{folder}: expected a folder to write figures to, got: {error.strerror or error}. "
            f"{what_to_do(error, 'Choose a folder that you may write to.')} Figures complete: "
            f"{', '.join(path.name for path in written) or 'none'}."
        )
        raise OutputError(msg) from error
    return written


def _figures(results: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Make the figures one by one, so that only one of them is in memory."""
    mofan, twins = results["mofan"], results.get("twins")
    for activation in dict.fromkeys(run["activation"] for run in mofan["runs"]):
        yield f"mofan-{activation}", plot_mofan_steps(mofan, activation)
    yield "mofan-cost", _costs(mofan)
    if mofan.get("ablation"):
        limit = mofan["reference"]["best_constant"]
        yield "mofan-ablation", _whole(plot_ablation(mofan["ablation"], limit=limit).figure)
    if twins:
        yield "twins", _curves(twins)
        if twins.get("mode"):
            yield "modes", _whole(plot_modes(twins).figure)


def _costs(mofan: Mapping[str, Any]) -> Figure:
    activations = list(dict.fromkeys(run["activation"] for run in mofan["runs"]))
    figure = Figure(figsize=(6.0 * len(activations), 4.0), layout="constrained")
    axes = figure.subplots(1, len(activations), squeeze=False)
    for ax, activation in zip(axes[0], activations, strict=True):
        plot_cost(mofan, activation, ax=ax)
    return figure


def _curves(twins: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(12.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_twins(twins, "train_loss", ax=left)
    plot_twins(twins, "val_accuracy", ax=right)
    return figure


def _whole(figure: Any) -> Figure:
    if not isinstance(figure, Figure):
        msg = f"figure: expected a whole matplotlib figure, got {type(figure).__name__}."
        raise InputError(msg)
    return figure


def _save(figure: Figure, path: Path, kind: str) -> None:
    # A date in the file would make two runs of the same data differ.
    metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=_DPI, metadata=metadata)

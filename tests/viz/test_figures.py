"""What the figures draw is what the document says."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bnkit.core.errors import InputError, OutputError
from bnkit.viz import (
    plot_ablation,
    plot_cost,
    plot_modes,
    plot_mofan_panels,
    plot_mofan_steps,
    plot_twins,
    save_figures,
)
from bnkit.viz.style import WITH_BN, WITHOUT_BN


def records(demo, activation, batch_norm, step):
    run = next(
        run
        for run in demo["mofan"]["runs"]
        if run["activation"] == activation and run["batch_norm"] == batch_norm
    )
    return [next(r for r in layer["records"] if r["step"] == step) for layer in run["layers"]]


def crosses(ax):
    return [line for line in ax.lines if line.get_marker() == "x"]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_bar_heights_are_the_counts(demo, activation):
    figure = plot_mofan_panels(demo["mofan"], activation, 0)
    assert len(figure.axes) == 16
    rows = records(demo, activation, False, 0) + records(demo, activation, True, 0)
    for ax, record in zip(figure.axes, rows, strict=True):
        assert [bar.get_height() for bar in ax.patches] == record["counts"]
        # One scale in shares for all panels, whatever the number of entries.
        shared = figure.axes[1].get_ylim()[1] / rows[1]["entries"]
        assert ax.get_ylim() == (0, pytest.approx(shared * record["entries"]))


def test_panel_without_a_finite_value_is_hatched_and_empty(demo):
    figure = plot_mofan_panels(demo["mofan"], "relu", 50)
    for ax, record in zip(figure.axes[:8], records(demo, "relu", False, 50), strict=True):
        empty = record["nonfinite"] == 1
        assert (len(ax.patches) == 0) == empty
        assert bool(ax.patch.get_hatch()) == empty
        assert [text.get_text() for text in ax.texts] == (["NaN\n100 %"] if empty else [])


def test_badges_stand_under_the_panel(demo):
    figure = plot_mofan_panels(demo["mofan"], "relu", 250)
    assert figure.axes[15].get_xlabel() == "NaN 2 %\n∞ 1 %\noutside 16 %"
    dead = plot_mofan_panels(demo["mofan"], "relu", 0).axes[7]
    assert "dead 33 %" in dead.get_xlabel()
    saturated = plot_mofan_panels(demo["mofan"], "tanh", 0).axes[7]
    assert "saturated >99 %" in saturated.get_xlabel()


def test_all_steps_in_one_figure(demo):
    figure = plot_mofan_steps(demo["mofan"], "tanh")
    assert len(figure.axes) == 6 * 16
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert [title.split(":")[0] for title in titles] == [
        f"tanh, step {step}" for step in (0, 50, 100, 150, 200, 250)
    ]


def test_cost_without_a_finite_value_is_one_cross(demo):
    ax = plot_cost(demo["mofan"], "relu")
    (cross,) = crosses(ax)
    assert cross.get_xdata()[0] == 0
    assert cross.get_transform() == ax.get_xaxis_transform()
    lost, kept = ax.lines[0], ax.lines[2]
    assert np.isnan(lost.get_ydata()).all()
    assert lost.get_label() == "no BN (∞ at step 0, NaN at the next record, step 5)"
    cost = next(r for r in demo["mofan"]["runs"] if r["activation"] == "relu" and r["batch_norm"])
    assert list(kept.get_ydata()) == cost["cost"]["values"]
    assert ax.get_yscale() == "log"


def test_references_are_drawn(demo):
    ax = plot_cost(demo["mofan"], "tanh")
    levels = {line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"}
    assert levels == {62.7, 737.7}


def test_lost_run_ends_in_a_cross_where_it_was_last_finite(demo):
    ax = plot_twins(demo["twins"])
    (cross,) = crosses(ax)
    run = demo["twins"]["arms"][1]["runs"][2]
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (140, run["train_loss"][7])


def test_median_over_the_seeds(demo):
    ax = plot_twins(demo["twins"], "val_accuracy")
    thick = [line for line in ax.lines if line.get_linewidth() > 2 and line.get_marker() != "x"]
    for line, arm in zip(thick, demo["twins"]["arms"], strict=True):
        table = np.array([run["val_accuracy"] for run in arm["runs"]])
        np.testing.assert_allclose(line.get_ydata(), np.median(table, axis=0))


def test_median_needs_most_of_the_runs(demo):
    for run in demo["twins"]["arms"][0]["runs"][:2]:
        run["train_loss"][-1] = None
    ax = plot_twins(demo["twins"])
    middle = next(line for line in ax.lines if line.get_label() == "with batch norm")
    assert np.isnan(middle.get_ydata()[-1])
    assert np.isfinite(middle.get_ydata()[:-1]).all()


def test_ablation_cells(demo):
    ablation = demo["mofan"]["ablation"]
    ax = plot_ablation(ablation)
    texts = [text.get_text() for text in ax.texts]
    assert texts[:10] == ["∞ [10]"] * 5 + ["925", "92.5", "57.8", "60.1", "∞ [10]"]
    assert texts[12] == "240 [4]"
    assert texts[15] == "1098"
    hatched = [bool(box.get_hatch()) for box in ax.patches]
    assert hatched == [cell["median"] is None for row in ablation["rows"] for cell in row["cells"]]


def test_ablation_text_can_be_read(demo):
    def light(color):
        parts = np.array(to_rgb(color))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    ablation = demo["mofan"]["ablation"]
    for index, cell in enumerate(c for row in ablation["rows"] for c in row["cells"]):
        cell["median"] = 50.0 * 1.13**index
    ax = plot_ablation(ablation)
    for box, text in zip(ax.patches, ax.texts, strict=True):
        low, high = sorted((light(box.get_facecolor()[:3]), light(text.get_color())))
        assert (high + 0.05) / (low + 0.05) > 4.5


def test_modes_are_sorted_with_whiskers(demo):
    ax = plot_modes(demo["twins"])
    bars = [bar.get_width() for bar in ax.patches]
    assert bars == [0.98, 0.979, 0.27, 0.16, 0.11]
    assert ax.get_yticklabels()[0].get_text() == "eval"
    colors = [to_rgb(bar.get_facecolor()[:3]) for bar in ax.patches]
    assert colors[0] == to_rgb(WITH_BN.color)
    assert colors[2] == to_rgb(WITHOUT_BN.color)
    assert len(ax.containers) == 2 * len(bars)


def test_given_axes_are_used(demo):
    figure = Figure()
    axes = figure.subplots(2, 3).ravel()
    assert plot_cost(demo["mofan"], "relu", ax=axes[0]) is axes[0]
    assert plot_ablation(demo["mofan"]["ablation"], ax=axes[1]) is axes[1]
    assert plot_twins(demo["twins"], ax=axes[2]) is axes[2]
    assert plot_modes(demo["twins"], ax=axes[3]) is axes[3]
    assert isinstance(plot_cost(demo["mofan"], "tanh"), Axes)
    whole = Figure()
    assert plot_mofan_panels(demo["mofan"], "relu", 0, fig=whole) is whole


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_saved_files(demo, tmp_path, kind):
    files = save_figures(demo, tmp_path / "new" / "figures", formats=(kind,))
    names = ["mofan-relu", "mofan-tanh", "mofan-cost", "mofan-ablation", "twins", "modes"]
    assert [file.name for file in files] == [f"{name}.{kind}" for name in names]
    assert sorted(files) == sorted((tmp_path / "new" / "figures").iterdir())
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[kind]
    assert all(file.read_bytes().startswith(start) for file in files)


def test_document_without_twins_and_ablation(demo, tmp_path):
    del demo["twins"]
    demo["mofan"]["ablation"] = None
    demo["mofan"]["record_steps"] = [0]
    names = [file.name for file in save_figures(demo, tmp_path)]
    assert names == ["mofan-relu.png", "mofan-tanh.png", "mofan-cost.png"]


def test_failure_leaves_no_half_written_file(demo, tmp_path, monkeypatch):
    demo["mofan"]["record_steps"] = [0]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_figures(demo, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file(demo, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match=r"taken.*folder that you may write to"):
        save_figures(demo, tmp_path / "taken")


def test_bad_arguments_name_what_is_known(demo, tmp_path):
    with pytest.raises(InputError, match="relu, tanh, got 'gelu'"):
        plot_mofan_panels(demo["mofan"], "gelu", 0)
    with pytest.raises(InputError, match="0, 50, 100, 150, 200, 250, got 7"):
        plot_mofan_panels(demo["mofan"], "relu", 7)
    with pytest.raises(InputError, match="train_loss, val_accuracy, got 'loss'"):
        plot_twins(demo["twins"], "loss")
    with pytest.raises(InputError, match="png, svg, pdf, got 'gif'"):
        save_figures(demo, tmp_path, formats=("gif",))


def test_no_pyplot_is_loaded():
    code = "import sys, bnkit.viz; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ablation_is_blue_only_below_the_best_constant(demo):
    ablation, limit = demo["mofan"]["ablation"], demo["mofan"]["reference"]["best_constant"]
    ax = plot_ablation(ablation, limit=limit)
    medians = [cell["median"] for row in ablation["rows"] for cell in row["cells"]]
    boxes = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert len(boxes) == len(medians)
    for median, box in zip(medians, boxes, strict=True):
        red, _, blue, _ = box.get_facecolor()
        assert (blue - red > 0.02) == (median is not None and median < limit)
    assert "blue: below the best constant, 738" in ax.get_title()

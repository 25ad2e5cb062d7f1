"""Static figures of a results document, drawn with matplotlib and without pyplot."""

from bnkit.viz.curves import plot_cost as plot_cost
from bnkit.viz.curves import plot_twins as plot_twins
from bnkit.viz.panels import plot_mofan_panels as plot_mofan_panels
from bnkit.viz.panels import plot_mofan_steps as plot_mofan_steps
from bnkit.viz.save import save_figures as save_figures
from bnkit.viz.tables import plot_ablation as plot_ablation
from bnkit.viz.tables import plot_modes as plot_modes

__all__ = [
    "plot_ablation",
    "plot_cost",
    "plot_modes",
    "plot_mofan_panels",
    "plot_mofan_steps",
    "plot_twins",
    "save_figures",
]

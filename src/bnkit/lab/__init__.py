"""Experiments on what batch norm does: every number measured, seeded, and given a verdict.

The names below are resolved on first use, so that the catalogue can be listed without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "EXPERIMENTS": "bnkit.lab.catalogue",
    "DemoConfig": "bnkit.lab.demo",
    "MofanConfig": "bnkit.lab.network",
    "Parts": "bnkit.lab.store",
    "TwinConfig": "bnkit.lab.twins",
    "run_ablation": "bnkit.lab.ablation",
    "run_demo": "bnkit.lab.demo",
    "run_leaving": "bnkit.lab.leaving",
    "run_mofan": "bnkit.lab.mofan",
    "run_repairs": "bnkit.lab.repairs",
    "run_twins": "bnkit.lab.study",
}

__all__ = [
    "EXPERIMENTS",
    "DemoConfig",
    "MofanConfig",
    "Parts",
    "TwinConfig",
    "run_ablation",
    "run_demo",
    "run_leaving",
    "run_mofan",
    "run_repairs",
    "run_twins",
]

if TYPE_CHECKING:
    from bnkit.lab.ablation import run_ablation as run_ablation
    from bnkit.lab.catalogue import EXPERIMENTS as EXPERIMENTS
    from bnkit.lab.demo import DemoConfig as DemoConfig
    from bnkit.lab.demo import run_demo as run_demo
    from bnkit.lab.leaving import run_leaving as run_leaving
    from bnkit.lab.mofan import run_mofan as run_mofan
    from bnkit.lab.network import MofanConfig as MofanConfig
    from bnkit.lab.repairs import run_repairs as run_repairs
    from bnkit.lab.store import Parts as Parts
    from bnkit.lab.study import run_twins as run_twins
    from bnkit.lab.twins import TwinConfig as TwinConfig


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        msg = f"module 'bnkit.lab' has no attribute {name!r}; it has: {', '.join(__all__)}"
        raise AttributeError(msg)
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

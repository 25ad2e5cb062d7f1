"""The doctor: what ruins a network with batch norm at inference, measured and named."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Diagnosis": "bnkit.doctor.diagnosis",
    "Finding": "bnkit.doctor.finding",
    "Selection": "bnkit.doctor.selection",
    "Severity": "bnkit.doctor.finding",
    "Suppression": "bnkit.doctor.selection",
    "diagnose": "bnkit.doctor.diagnosing",
    "find_rule": "bnkit.doctor.catalogue",
    "all_rules": "bnkit.doctor.catalogue",
    "watch": "bnkit.doctor.watching",
}

__all__ = [*_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from bnkit.doctor.catalogue import all_rules as all_rules
    from bnkit.doctor.catalogue import find_rule as find_rule
    from bnkit.doctor.diagnosing import diagnose as diagnose
    from bnkit.doctor.diagnosis import Diagnosis as Diagnosis
    from bnkit.doctor.finding import Finding as Finding
    from bnkit.doctor.finding import Severity as Severity
    from bnkit.doctor.selection import Selection as Selection
    from bnkit.doctor.selection import Suppression as Suppression
    from bnkit.doctor.watching import watch as watch


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use: the catalogue of rules needs no framework."""
    if name not in _PUBLIC:
        msg = f"module 'bnkit.doctor' has no attribute {name!r}; it has: {', '.join(__all__)}"
        raise AttributeError(msg)
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value  # a submodule of the same name must not hide it
    return value

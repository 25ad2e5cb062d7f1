"""bnkit: batch normalization for its whole life.

The names below are resolved on first use, so that `import bnkit`, `import bnkit.core` and
`bnkit --help` load no framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_PUBLIC = {
    "BatchNormError": "bnkit.core.errors",
    "BatchNormSpec": "bnkit.core.spec",
    "Diagnosis": "bnkit.doctor.diagnosis",
    "Folding": "bnkit.fold",
    "Moments": "bnkit.core.moments",
    "Recalibration": "bnkit.recalibration",
    "RunningStats": "bnkit.core.running",
    "core": "bnkit.core",
    "diagnose": "bnkit.doctor.diagnosing",
    "doctor": "bnkit.doctor",
    "fold": "bnkit.fold",
    "fold_": "bnkit.fold",
    "functional": "bnkit.functional",
    "lab": "bnkit.lab",
    "nn": "bnkit.nn",
    "preset": "bnkit.core.frameworks",
    "recalibrate": "bnkit.recalibration",
    "recalibrate_": "bnkit.recalibration",
    "unfold": "bnkit.fold",
    "watch": "bnkit.doctor.watching",
}

__all__ = [*_PUBLIC, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from bnkit import core as core
    from bnkit import doctor as doctor
    from bnkit import functional as functional
    from bnkit import lab as lab
    from bnkit import nn as nn
    from bnkit.core.errors import BatchNormError as BatchNormError
    from bnkit.core.frameworks import preset as preset
    from bnkit.core.moments import Moments as Moments
    from bnkit.core.running import RunningStats as RunningStats
    from bnkit.core.spec import BatchNormSpec as BatchNormSpec
    from bnkit.doctor.diagnosing import diagnose as diagnose
    from bnkit.doctor.diagnosis import Diagnosis as Diagnosis
    from bnkit.doctor.watching import watch as watch
    from bnkit.fold import Folding as Folding
    from bnkit.fold import fold as fold
    from bnkit.fold import fold_ as fold_
    from bnkit.fold import unfold as unfold
    from bnkit.recalibration import Recalibration as Recalibration
    from bnkit.recalibration import recalibrate as recalibrate
    from bnkit.recalibration import recalibrate_ as recalibrate_


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        msg = f"module 'bnkit' has no attribute {name!r}; it has: {', '.join(__all__)}"
        raise AttributeError(msg)
    module = import_module(_PUBLIC[name])
    return module if _PUBLIC[name] == f"bnkit.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The scalars of a diagnosis, and one way to hand them to any tracker."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from bnkit.core.errors import InputError
from bnkit.doctor.diagnosis import Diagnosis


def scalars(diagnosis: Diagnosis) -> dict[str, float]:
    """Numbers of a diagnosis by name, for curves over the steps of a training.

    Args:
        diagnosis: What was found.

    Returns:
        `bn/errors`, `bn/warnings`, the impact, and d90 and r90 of each layer; finite numbers only.

    Example:
        >>> import torch, bnkit
        >>> scalars(bnkit.diagnose(torch.nn.BatchNorm1d(3), purpose="train"))
        {'bn/errors': 0.0, 'bn/warnings': 0.0}
    """
    found = {
        "bn/errors": float(len(diagnosis.errors)),
        "bn/warnings": float(len(diagnosis.warnings)),
    }
    if diagnosis.impact is not None:
        found[f"bn/{diagnosis.impact.metric}/eval"] = diagnosis.impact.before
        found[f"bn/{diagnosis.impact.metric}/batch"] = diagnosis.impact.after
    layers = {} if diagnosis.probe is None else diagnosis.probe.layers
    for name, seen in layers.items():
        if seen.stored is not None:
            found[f"bn/{name}/d90"] = seen.stored.d90
            found[f"bn/{name}/r90"] = seen.stored.r90
    return {key: value for key, value in found.items() if isfinite(value)}


def send(values: Mapping[str, float], sink: Any, step: int) -> None:
    """Hand scalars to a tracker, known by what it can do.

    Args:
        values: By name.
        sink: Something with `log(dict, step=)` (W&B, Trackio), `log_metrics(dict, step=)`
            (MLflow, Lightning) or `add_scalar(name, value, step)` (TensorBoard).
        step: Of the training.

    Raises:
        InputError: The sink can do none of these.

    Example:
        >>> class Board:
        ...     def add_scalar(self, name, value, step):
        ...         print(name, value, step)
        >>> send({"bn/errors": 0.0}, Board(), 7)
        bn/errors 0.0 7
    """
    if hasattr(sink, "add_scalar"):
        for name, value in values.items():
            sink.add_scalar(name, value, step)
    elif hasattr(sink, "log_metrics"):
        sink.log_metrics(dict(values), step=step)
    elif hasattr(sink, "log"):
        sink.log(dict(values), step=step)
    else:
        msg = (
            f"send: expected a sink with add_scalar, log_metrics or log, got {type(sink).__name__}."
        )
        raise InputError(msg)

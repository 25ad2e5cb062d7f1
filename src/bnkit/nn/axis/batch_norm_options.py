"""Which options of `BatchNorm` exclude each other, and which values they may have."""

from typing import Any

import torch
from torch import Tensor

from bnkit.core import SpecError


def check_options(layer: Any) -> None:
    """Raise `SpecError` for options that do not go together, or are out of range."""
    _check_axes(layer)
    for option in (layer.ghost, layer.renorm):
        if option is not None:
            option.check("BatchNorm")
    _choice("running_correction", layer.running_correction, (0, 1, "fused"))
    _choice("frozen_normalizes_with", layer.frozen_normalizes_with, ("running", "batch"))
    for name in ("regularizers", "constraints"):
        for parameter, rule in getattr(layer, name).items():
            if rule is not None and not callable(rule):
                _refuse(f"{parameter}_{name[:-1]}", "a function of the parameter, or None", rule)
    if layer.adjustment is not None and not callable(layer.adjustment):
        _refuse("adjustment", "a function of the shape, or None", layer.adjustment)
    correction = layer.correction
    if isinstance(correction, bool) or not isinstance(correction, int | float) or correction < 0:
        _refuse("correction", "a number >= 0", correction)
    _check_pairs(layer)


def has_fused_kernel(layer: Any, x: Tensor) -> bool:
    """Whether TensorFlow would run its fused kernel, which stores n / (n - 1) times the variance.

    Args:
        layer: A `BatchNorm`.
        x: Its input.

    Returns:
        Whether it would, in TensorFlow 2; up to 1.15 not for 5-D.
    """
    plain = layer.ghost is None and layer.renorm is None and layer.adjustment is None
    single = len(layer.axis) == 1 and layer.axis[0] % x.ndim in (1, x.ndim - 1)
    return plain and single and x.ndim in (4, 5) and x.dtype != torch.float64


def _check_axes(layer: Any) -> None:
    sizes = layer.num_features
    if not sizes or not all(isinstance(n, int) and n >= 0 for n in sizes):
        _refuse("num_features", "the number of channels, one per axis", sizes)
    if not all(isinstance(a, int) for a in layer.axis):
        _refuse("axis", "one integer or several", layer.axis)
    if len(sizes) != len(layer.axis):
        msg = (
            f"BatchNorm: expected as many num_features as axes, got num_features={sizes} and "
            f"axis={layer.axis}. Give one size per channel axis."
        )
        raise SpecError(msg)


def _check_pairs(layer: Any) -> None:
    against = None
    if layer.ghost is not None and layer.adjustment is not None:
        against = "virtual_batch_size", "adjustment", "so does TensorFlow; choose one"
    elif layer.ghost is not None and 0 in layer.axis:
        against = "virtual_batch_size", "axis 0", "the groups are made of samples, axis 0"
    elif layer.renorm is not None and layer.correction:
        against = "renorm", "correction", "r would undo it"
    if against is not None:
        msg = f"BatchNorm: {against[0]} excludes {against[1]}: {against[2]}."
        raise SpecError(msg)


def _choice(name: str, value: object, known: tuple) -> None:
    if not any(value == k and type(value) is type(k) for k in known):
        _refuse(name, "one of " + ", ".join(map(repr, known)), value)


def _refuse(name: str, expected: str, got: object) -> None:
    msg = f"BatchNorm: expected {name} to be {expected}, got {got!r}."
    raise SpecError(msg)

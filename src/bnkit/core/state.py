"""The stored numbers of one batch norm, and what inference makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from bnkit.core.errors import ConversionError
from bnkit.core.spec import BatchNormSpec

Array = Any
_ARRAYS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchNormState:
    """The numbers of one batch norm as its framework stores them; NumPy arrays of any float dtype.

    Attributes:
        weight: Scale, shape `(c,)` or one that broadcasts; None where none is stored.
        bias: Shift, likewise.
        running_mean: The average as stored: a sum in Caffe, not yet debiased in Equinox.
        running_var: Likewise.
        count: Batches that the statistics have seen; None where that is not stored.
        factor: The sum of weights that Caffe's statistics are divided by.
        extra: What else is kept, by role: the variables of a renormalization, Haiku's `hidden_mean`
            and `hidden_var`, contrib's `biased_mean`.
    """

    weight: Array | None = None
    bias: Array | None = None
    running_mean: Array | None = None
    running_var: Array | None = None
    count: int | None = None
    factor: float | None = None
    extra: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def from_roles(cls, tensors: Mapping[str, Array]) -> "BatchNormState":
        """The state whose tensors have these roles, the names of the attributes or other ones.

        Args:
            tensors: Arrays by role; what is no attribute becomes `extra`.

        Returns:
            The state.
        """
        known = {f.name for f in fields(cls)} - {"extra"}
        given: dict[str, Any] = {k: v for k, v in tensors.items() if k in known}
        for name, kind in (("count", int), ("factor", float)):
            if given.get(name) is not None:
                given[name] = kind(np.asarray(given[name]).reshape(()))
        return cls(**given, extra={k: v for k, v in tensors.items() if k not in known})

    def roles(self) -> dict[str, Array]:
        """The stored arrays by role, without those that are not there."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {k: v for k, v in {**own, **self.extra}.items() if v is not None}


class Inference(NamedTuple):
    """What inference computes with, in float64.

    Attributes:
        mean: Subtracted, shape `(c,)`; of several channel axes the full shape.
        var: To which `eps` is added under the root.
        weight: Multiplies; ones where none is stored.
        bias: Is added; zeros where none is stored.
        eps: With the floor of the kernel.
    """

    mean: np.ndarray
    var: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    eps: float


def flat_state(state: BatchNormState) -> BatchNormState:
    """The same state with arrays of shape `(c,)`.

    Args:
        state: Its arrays may have axes of length 1, as Haiku's and those of TensorFlow's ghost
            batch norm; with several channel axes they keep the full shape.

    Returns:
        A state whose arrays are flat, where one axis holds the channels.
    """
    changed = {n: _flat(getattr(state, n)) for n in _ARRAYS if getattr(state, n) is not None}
    return replace(state, **changed, extra={k: _flat(v) for k, v in state.extra.items()})


def read_state(state: BatchNormState, spec: BatchNormSpec, *, name: str = "") -> Inference:
    """What inference reads from stored numbers: debiased, with a fixed weight as 1, in float64.

    Args:
        state: As stored.
        spec: Of the framework that stored it.
        name: Of the layer, for messages.

    Returns:
        Mean, variance, weight, bias and eps of `y = (x - mean) / sqrt(var + eps) * weight + bias`.

    Raises:
        ConversionError: Statistics are missing or not finite, the counter that debiases them is
            missing, shapes disagree, or the variance is so negative that the framework itself
            computes NaN.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import CAFFE, BatchNormState, read_state
        >>> sums = np.array([6.0]), np.array([8.0])
        >>> state = BatchNormState(running_mean=sums[0], running_var=sums[1], factor=2.0)
        >>> read_state(state, CAFFE).mean
        array([3.])
    """
    where = f"batch norm {name!r}" if name else "batch norm"
    missing = [n for n in ("running_mean", "running_var") if getattr(state, n) is None]
    if missing:
        msg = (
            f"{where}: expected the statistics that inference reads, got none stored "
            f"({' and '.join(missing)}). It normalizes with its batch; recalibrate it first."
        )
        raise ConversionError(msg)
    flat = flat_state(state)
    mean, var = _wide(flat.running_mean), _wide(flat.running_var)
    _check_shapes(where, flat, mean.shape)
    share = _share(state, spec, where)
    mean, var = mean / share[0], var / share[1]
    fixed = spec.weight_fixed or flat.weight is None
    weight = np.ones_like(mean) if fixed else _wide(flat.weight)
    bias = np.zeros_like(mean) if flat.bias is None else _wide(flat.bias)
    eps = spec.effective_eps
    _check_numbers(where, (mean, var, weight, bias), eps)
    return Inference(mean, var, weight, bias, eps)


def _share(state: BatchNormState, spec: BatchNormSpec, where: str) -> tuple[float, float]:
    """What the stored mean and variance are divided by before use."""
    if spec.debias == "none" or {"hidden_mean", "biased_mean"} & state.extra.keys():
        return 1.0, 1.0  # Haiku and contrib store the debiased average beside the other one
    if state.factor is not None:
        if not state.factor > 0:
            msg = (
                f"{where}: expected the positive factor that its sums are divided by, got "
                f"{state.factor:g}: no batch has entered the statistics. Train or recalibrate it."
            )
            raise ConversionError(msg)
        return state.factor, state.factor
    if spec.debias == "mean":
        return 1.0, 1.0
    if not state.count:
        got = "no counter" if state.count is None else "a counter of 0"
        msg = (
            f"{where}: expected the number of batches that debiases its statistics, got {got}. "
            "Pass the tensor that holds it, or a spec with debias='none'."
        )
        raise ConversionError(msg)
    share = 1.0 if spec.ema_weight is None else 1.0 - (1.0 - spec.ema_weight) ** state.count
    return share, share


def _check_shapes(where: str, state: BatchNormState, shape: tuple[int, ...]) -> None:
    for name in _ARRAYS:
        value = getattr(state, name)
        if value is not None and np.shape(value) != shape:
            msg = (
                f"{where}: expected {name} of shape {shape} like the running mean, got "
                f"{np.shape(value)}."
            )
            raise ConversionError(msg)


def _check_numbers(where: str, arrays: tuple[np.ndarray, ...], eps: float) -> None:
    names = ("running mean", "running variance", "weight", "bias")
    for name, array in zip(names, arrays, strict=True):
        bad = np.flatnonzero(~np.isfinite(array))
        if bad.size:
            msg = (
                f"{where}: expected finite numbers, got {array.flat[bad[0]]} in the {name} of "
                f"channel {bad[0]} ({bad.size} of {array.size}). Recalibrate or retrain it first."
            )
            raise ConversionError(msg)
    bad = np.flatnonzero(arrays[1] + eps <= 0)
    if bad.size:
        msg = (
            f"{where}: expected a running variance above -eps = {-eps:g}, got "
            f"{arrays[1].flat[bad[0]]:g} in channel {bad[0]}: its own framework divides by zero or "
            "computes NaN there. Recalibrate it first."
        )
        raise ConversionError(msg)


def _flat(array: Array) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim > 1 and sum(n != 1 for n in array.shape) <= 1:
        return array.reshape(-1)
    return array


def _wide(array: Array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)

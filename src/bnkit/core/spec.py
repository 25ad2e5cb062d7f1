"""`BatchNormSpec`: what one framework means by batch normalization, all but the numbers."""

import math
from dataclasses import Field, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bnkit.core.errors import SpecError


class Effect(StrEnum):
    """What a disagreement in one field changes; the order is that of severity."""

    INFERENCE = "inference"  # the output of eval mode, from the same stored numbers
    TRAINING = "training"  # the output or the gradient of a training step
    UPDATE = "update"  # the stored statistics after a training step
    EDGE = "edge case"  # only empty batches, single values, masks, several devices
    ROUNDING = "rounding"  # the same formula, other rounding errors
    STORAGE = "storage"  # the shape or the place of the stored numbers


def _axis(number: int, default: object, effect: Effect, meaning: str) -> Any:
    return field(default=default, metadata={"axis": number, "effect": effect, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormSpec:
    """Every axis on which implementations of batch normalization differ.

    The defaults are PyTorch's. `n` is the number of values per channel, `vB` the variance that
    divides by `n`. The word *momentum* does not occur: frameworks disagree on its direction, so
    that `ema_weight` is always the weight of the **new** batch,
    `running = (1 - ema_weight) * running + ema_weight * batch`.

    Raises:
        SpecError: A field has a value that its type does not allow.

    Example:
        >>> from bnkit.core import BatchNormSpec
        >>> BatchNormSpec(eps=1e-3, ema_weight=0.01, running_correction=0).ema_weight
        0.01
        >>> BatchNormSpec(eps=-1.0)
        Traceback (most recent call last):
        ...
        bnkit.core.errors.SpecError: BatchNormSpec: eps must be a number >= 0, got -1.0.
    """

    ema_weight: float | None = _axis(
        1, 0.1, Effect.UPDATE, "weight of the new batch; None = cumulative average of the batches"
    )
    first_batch: Literal["average", "copy"] = _axis(
        1, "average", Effect.UPDATE, "the first batch enters the average, or replaces it"
    )
    running_correction: Literal[0, 1, "n-1-eps", "double"] = _axis(
        2,
        1,
        Effect.UPDATE,
        "stored variance: vB times 1, n/(n-1), n/(n-1-eps) or n/(n-1) * n/(n-1-eps)",
    )
    single_value: Literal["error", "zero", "nan", "identity"] = _axis(
        2, "error", Effect.EDGE, "one value per channel: refuse, variance 0, NaN, or y = x"
    )
    debias: Literal["none", "mean", "both"] = _axis(
        3, "none", Effect.INFERENCE, "statistics divided by 1 - (1 - ema_weight)^t before use"
    )
    stored_average: Literal["average", "sum"] = _axis(
        3, "average", Effect.STORAGE, "sum = of weighted batches, with the sum of weights beside it"
    )
    initial_mean: float = _axis(3, 0.0, Effect.UPDATE, "running mean before the first batch")
    initial_var: float = _axis(3, 1.0, Effect.UPDATE, "running variance before the first batch")
    train_statistics: Literal["batch", "updated_running", "running", "blend", "renorm"] = _axis(
        4, "batch", Effect.TRAINING, "what normalizes in training mode"
    )
    virtual_batch_size: int | None = _axis(
        5, None, Effect.TRAINING, "ghost batch norm: samples normalized together"
    )
    ghost_groups: Literal["contiguous", "strided"] = _axis(
        5, "contiguous", Effect.TRAINING, "which samples form a ghost batch"
    )
    ghost_running: Literal["mean", "sequential", "total"] = _axis(
        5, "mean", Effect.UPDATE, "running update: mean of the ghost batches, one by one, total"
    )
    tracked_second_moment: Literal["variance", "stddev"] = _axis(
        6, "variance", Effect.UPDATE, "what is averaged; stddev is squared (minus eps) when read"
    )
    eps: float = _axis(7, 1e-5, Effect.INFERENCE, "added to the variance, inside the square root")
    min_eps: float = _axis(7, 0.0, Effect.INFERENCE, "a kernel that raises a smaller eps to this")
    variance_algorithm: Literal["two_pass", "fast", "fast_clipped"] = _axis(
        8, "two_pass", Effect.ROUNDING, "fast = E[x^2] - E[x]^2; bnkit itself never computes that"
    )
    statistics_dtype: Literal["float32", "parameter", "input"] = _axis(
        8, "float32", Effect.ROUNDING, "dtype of the statistics: float32 at least, or as named"
    )
    has_weight: bool = _axis(9, True, Effect.INFERENCE, "a learned scale by default")
    has_bias: bool = _axis(9, True, Effect.INFERENCE, "a learned shift by default")
    weight_fixed: bool = _axis(9, False, Effect.INFERENCE, "the scale is stored but read as 1")
    channel_axis: int = _axis(10, 1, Effect.INFERENCE, "default axis of the channels")
    several_axes: bool = _axis(10, False, Effect.EDGE, "more than one channel axis allowed")
    parameter_shape: Literal["flat", "broadcast"] = _axis(
        10, "flat", Effect.STORAGE, "stored as (C,) or as a shape that broadcasts, (1, .., C)"
    )
    update_when: Literal["forward", "update_ops", "backward", "returned", "never"] = _axis(
        11, "forward", Effect.UPDATE, "when the running statistics move"
    )
    frozen_normalizes_with: Literal["batch", "running", "mode"] = _axis(
        11, "mode", Effect.TRAINING, "a frozen layer in training mode; mode = freezing is eval mode"
    )
    mask: Literal["none", "where", "weighted"] = _axis(
        12, "none", Effect.EDGE, "masked statistics: none, selected, or multiplied (NaN passes)"
    )
    mask_eps: float = _axis(
        12, 0.0, Effect.EDGE, "added to the count of a masked mean; noted, not computed"
    )
    masked_whole: Literal["skip", "zero", "nan"] = _axis(
        12, "skip", Effect.EDGE, "a channel masked whole is left alone, averages 0 in, or NaN"
    )
    sync_weighting: Literal["none", "count", "equal"] = _axis(
        13, "count", Effect.EDGE, "several devices: none, weighted by count, mean of means"
    )
    empty_batch: Literal["skip", "nan"] = _axis(
        14, "skip", Effect.EDGE, "no samples: the statistics are left alone, or become NaN"
    )

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            _check_choice(name, hint, getattr(self, name))
        for name in ("eps", "min_eps", "mask_eps", "initial_var"):
            if not 0 <= getattr(self, name) < math.inf:
                _refuse(name, "a number >= 0", getattr(self, name))
        if self.ema_weight is not None and not math.isfinite(self.ema_weight):
            _refuse("ema_weight", "a finite number or None", self.ema_weight)
        size = self.virtual_batch_size
        if size is not None and not (_is_integer(size) and size >= 1):
            _refuse("virtual_batch_size", "None or an integer of at least 1", size)
        if not _is_integer(self.channel_axis):
            _refuse("channel_axis", "an integer", self.channel_axis)

    @property
    def effective_eps(self) -> float:
        """`max(eps, min_eps)`: what the kernel really adds to the variance."""
        return max(self.eps, self.min_eps)


@dataclass(frozen=True, slots=True)
class SpecDifference:
    """One field in which two specifications disagree."""

    field: str
    left: Any
    right: Any
    axis: int
    effect: Effect
    meaning: str


def difference(left: BatchNormSpec, right: BatchNormSpec) -> tuple[SpecDifference, ...]:
    """The fields in which two specifications disagree, the gravest effect first.

    Args:
        left: One specification.
        right: The other.

    Returns:
        One `SpecDifference` per field that differs.

    Example:
        >>> from bnkit.core import KERAS3, TORCH, difference
        >>> [d.field for d in difference(TORCH, KERAS3) if d.effect == "inference"]
        ['eps', 'channel_axis']
    """
    order = list(Effect)
    found = [
        SpecDifference(
            field=f.name,
            left=getattr(left, f.name),
            right=getattr(right, f.name),
            axis=f.metadata["axis"],
            effect=f.metadata["effect"],
            meaning=f.metadata["meaning"],
        )
        for f in fields(BatchNormSpec)
        if getattr(left, f.name) != getattr(right, f.name)
    ]
    return tuple(sorted(found, key=lambda d: (order.index(d.effect), d.axis)))


def spec_fields() -> tuple[Field, ...]:
    """The fields of `BatchNormSpec`, with their metadata `axis`, `effect` and `meaning`."""
    return fields(BatchNormSpec)


def _hints() -> dict[str, Any]:
    return get_type_hints(BatchNormSpec)


def _check_choice(name: str, hint: Any, value: Any) -> None:
    if get_origin(hint) is Literal:
        # 0 == False and 1 == True, so the type takes part in the comparison
        if not any(value == c and type(value) is type(c) for c in get_args(hint)):
            _refuse(name, "one of " + ", ".join(map(repr, get_args(hint))), value)
    elif hint is bool and not isinstance(value, bool):
        _refuse(name, "True or False", value)
    elif hint is float and not _is_number(value):
        _refuse(name, "a number", value)
    elif name == "ema_weight" and not (value is None or _is_number(value)):
        _refuse(name, "a number or None", value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(name: str, expected: str, got: object) -> None:
    msg = f"BatchNormSpec: {name} must be {expected}, got {got!r}."
    raise SpecError(msg)

"""Does training go on alike after a conversion? Claimed or denied, axis by axis."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bnkit.core.running import correction_factor
from bnkit.core.spec import BatchNormSpec, Effect, SpecDifference, difference
from bnkit.core.state import BatchNormState

# Half a unit in the last place of float32: what differs by less is stored as the same number.
_SAME = 2.0**-24
_GHOST = ("virtual_batch_size", "ghost_groups", "ghost_running")


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisClaim:
    """One field in which two specifications differ, and whether the next step notices.

    Attributes:
        axis: Number of the axis, as in the specification.
        field: Name of the field.
        source: Its value in the source.
        target: Its value in the target.
        statistics: Inference after the step is the same as far as this field goes.
        output: The output of the step is.
        reason: Why.
    """

    axis: int
    field: str
    source: Any
    target: Any
    statistics: bool
    output: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OneStep:
    """Whether one more training step, on the same batch, gives the same in source and target.

    Attributes:
        statistics: Inference after the step is the same function, rounding and the edge cases that
            `claims` name apart.
        output: So is the output of the step itself.
        claims: One per field that differs.
    """

    statistics: bool
    output: bool
    claims: tuple[AxisClaim, ...]


def one_step(
    source: tuple[BatchNormState, BatchNormSpec],
    target: tuple[BatchNormState, BatchNormSpec],
    count: int | None = None,
) -> OneStep:
    """Compare the next training step of two batch norms that infer alike.

    Args:
        source: State and specification.
        target: State, converted from it, and specification.
        count: Values per channel in a batch, with which Bessel's correction is judged.

    Returns:
        What holds, and one claim per field that differs.
    """
    specs = source[1], target[1]
    differing = difference(*specs)
    names = {d.field for d in differing}
    doubled = "min_eps" if "eps" in names else ""  # said once
    found = [_claim(d, specs, count) for d in differing if d.field != doubled]
    if names & {"ema_weight", "first_batch", "debias"} or _averages_differ(source, target):
        found.append(_averaging(source, target))
    statistics = all(c.statistics for c in found)
    return OneStep(statistics=statistics, output=all(c.output for c in found), claims=tuple(found))


def next_weights(state: BatchNormState, spec: BatchNormSpec) -> tuple[float, float] | None:
    """Weight of the next batch in the mean and in the variance that inference reads then.

    Args:
        state: Has the number of batches, or Caffe's factor.
        spec: Says how they are averaged.

    Returns:
        Both weights; None if they depend on a number of batches that is not known.
    """
    t, a = state.count, spec.ema_weight
    if a is None:
        return None if t is None else (1 / (t + 1), 1 / (t + 1))
    if spec.first_batch == "copy" and t == 0:
        return 1.0, 1.0
    if spec.debias == "none":
        return a, a
    if state.factor is not None:
        weight = 1 / ((1 - a) * state.factor + 1)
        return weight, weight
    if t is None:
        return None
    weight = a / (1 - (1 - a) ** (t + 1))
    return weight, (weight if spec.debias == "both" else a)


def _averages_differ(source: tuple, target: tuple) -> bool:
    return next_weights(*source) != next_weights(*target)


def _averaging(source: tuple, target: tuple) -> AxisClaim:
    weights = next_weights(*source), next_weights(*target)
    left, right = weights
    same = False
    if left is not None and right is not None:
        same = all(abs(a - b) <= _SAME * a for a, b in zip(left, right, strict=True))
    shown = [w if w is None else (w[0] if w[0] == w[1] else w) for w in weights]
    if same:
        reason = "the next batch has the same weight"
    elif None in weights:
        reason = "its weight depends on a number of batches that is not stored"
    else:
        reason = "the next batch has another weight in the running statistics"
    return AxisClaim(
        axis=3 if source[1].debias != target[1].debias else 1,
        field="weight of the next batch",
        source=shown[0],
        target=shown[1],
        statistics=same,
        output=True,
        reason=reason,
    )


def _claim(
    d: SpecDifference, specs: tuple[BatchNormSpec, BatchNormSpec], count: int | None
) -> AxisClaim:
    if d.field in _RULES:
        statistics, output, reason = _RULES[d.field](specs, count)
    elif d.effect in (Effect.EDGE, Effect.ROUNDING):
        statistics, output, reason = True, True, f"{d.effect} only: {d.meaning}"
    else:
        statistics, output, reason = True, True, "resolved: the stored numbers say it"
    return AxisClaim(
        axis=d.axis,
        field=d.field,
        source=d.left,
        target=d.right,
        statistics=statistics,
        output=output,
        reason=reason,
    )


_Verdict = tuple[bool, bool, str]


def _eps(specs: tuple[BatchNormSpec, BatchNormSpec], _: int | None) -> _Verdict:
    left, right = (s.effective_eps for s in specs)
    if left == right:
        return True, True, "the same after the floor of the kernel"
    return False, False, "a batch is normalized with another eps, and mixed with a moved variance"


def _correction(specs: tuple[BatchNormSpec, BatchNormSpec], count: int | None) -> _Verdict:
    if count is None:
        return False, True, "stored variances differ by a factor; pass count to know it"
    left, right = (correction_factor(s, count) for s in specs)
    ratio = right / left
    if math.isclose(ratio, 1.0, rel_tol=_SAME):
        return True, True, f"n = {count}: the factor is 1 in float32"
    return False, True, f"n = {count}: the variance of a batch enters {ratio:.6g} times as large"


def _source(specs: tuple[BatchNormSpec, BatchNormSpec], _: int | None) -> _Verdict:
    renorm = any(s.train_statistics == "renorm" for s in specs)
    return not renorm, False, "training normalizes with other statistics"


def _ghost(specs: tuple[BatchNormSpec, BatchNormSpec], _: int | None) -> _Verdict:
    if all(s.virtual_batch_size is None for s in specs):
        return True, True, "neither has ghost batches"
    return False, False, "a batch is cut into other ghost batches"


def _tracked(_specs: tuple[BatchNormSpec, BatchNormSpec], _: int | None) -> _Verdict:
    return False, True, "the average of standard deviations is not that of variances"


def _when(specs: tuple[BatchNormSpec, BatchNormSpec], _: int | None) -> _Verdict:
    if any(s.update_when == "never" for s in specs):
        return False, True, "one of them never updates"
    return True, True, "where the update is run: both passes, and what the framework returns"


def _frozen(_specs: tuple[BatchNormSpec, BatchNormSpec], _: int | None) -> _Verdict:
    return True, True, "a frozen layer only"


def _affine(_specs: tuple[BatchNormSpec, BatchNormSpec], _: int | None) -> _Verdict:
    return True, True, "resolved: the weight is written as it is read; one of them learns it"


_RULES: dict[str, Callable[[tuple[BatchNormSpec, BatchNormSpec], int | None], _Verdict]] = {
    "eps": _eps,
    "min_eps": _eps,
    "running_correction": _correction,
    "train_statistics": _source,
    "tracked_second_moment": _tracked,
    "update_when": _when,
    "frozen_normalizes_with": _frozen,
    "weight_fixed": _affine,
    **dict.fromkeys(_GHOST, _ghost),
}

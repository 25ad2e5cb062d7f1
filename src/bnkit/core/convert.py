"""One batch norm from one framework's meaning to another's: inference equal, the rest said."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnkit.core.errors import ConversionError
from bnkit.core.one_step import OneStep, one_step
from bnkit.core.spec import BatchNormSpec
from bnkit.core.state import BatchNormState, Inference, flat_state, read_state

# Beyond this exponent 1 - (1 - ema_weight)**t is 1 in float64.
_SETTLED = -54 * math.log(2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversion:
    """A state in the target's terms, and what is proved of it.

    Inference is the same function in any case, up to one rounding of each stored number.

    Attributes:
        state: What the target stores.
        exact: Training goes on as in the source too: nothing was left behind, and the next step
            gives the same output and statistics.
        notes: What was changed, one sentence each.
        one_step: What the next training step has in common, axis by axis.
    """

    state: BatchNormState
    exact: bool
    notes: tuple[str, ...]
    one_step: OneStep


def convert_state(
    state: BatchNormState,
    source: BatchNormSpec,
    target: BatchNormSpec,
    *,
    count: int | None = None,
    name: str = "",
) -> Conversion:
    """Express the stored numbers of a batch norm in the terms of another framework.

    With `e` the eps that each kernel really adds, `var' = var + e_source - e_target`; where that is
    negative the variance stays and `weight' = weight * sqrt((var + e_target) / (var + e_source))`.
    Both leave `weight / sqrt(var + e)`, equation 16, as it is. Computed in float64, rounded once.

    Args:
        state: As the source stores it.
        source: What the source means by it.
        target: What the target means by it.
        count: Values per channel in a training batch; without it Bessel's correction, where only
            one of the two has it, counts as a difference of unknown size.
        name: Of the layer, for messages.

    Returns:
        The new state, with `exact`, `notes` and `one_step`.

    Raises:
        ConversionError: The source computes NaN, lacks statistics, or has several channel axes
            or a weight which the target cannot have.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import KERAS3, TORCH, BatchNormState, convert_state
        >>> state = BatchNormState(running_mean=np.zeros(2), running_var=np.array([1.0, 4.0]))
        >>> done = convert_state(state, KERAS3, TORCH)
        >>> done.state.running_var, done.exact
        (array([1.00099, 4.00099]), False)
        >>> [c.field for c in done.one_step.claims if not c.statistics]
        ['eps', 'running_correction', 'weight of the next batch']
    """
    read = read_state(state, source, name=name)
    _check_axes(read, target, name)
    if source == target:
        same = flat_state(state)
        alike = OneStep(statistics=True, output=True, claims=())
        return Conversion(state=same, exact=True, notes=(), one_step=alike)
    notes: list[str] = []
    moved = _moved(read, target, notes)
    _check_weight(moved, target, name)
    kept = _affine(state, moved, target, notes)
    made = _averaged(state, moved, (source, target), notes)
    made = _rounded(replace(made, weight=kept[0], bias=kept[1]), state)
    left = sorted(state.extra.keys() - made.extra.keys())
    if left:
        notes.append(f"left behind, inference does not read it: {', '.join(left)}")
    after = one_step((state, source), (made, target), count)
    exact = after.statistics and after.output and not left
    return Conversion(state=made, exact=exact, notes=tuple(notes), one_step=after)


def _check_axes(read: Inference, target: BatchNormSpec, name: str) -> None:
    if read.mean.ndim > 1 and not target.several_axes:
        where = f"batch norm {name!r}" if name else "batch norm"
        msg = (
            f"{where}: expected one channel axis, which is all the target can have, got parameters "
            f"of shape {read.mean.shape}. Reshape its input so that those axes become one."
        )
        raise ConversionError(msg)


def _check_weight(read: Inference, target: BatchNormSpec, name: str) -> None:
    if target.weight_fixed and not np.all(read.weight == 1):
        where = f"batch norm {name!r}" if name else "batch norm"
        msg = (
            f"{where}: expected a target that reads its weight, got one that takes it as 1 "
            "(weight_fixed, fix_gamma). Build it with fix_gamma=False and say so in its spec."
        )
        raise ConversionError(msg)


def _moved(read: Inference, target: BatchNormSpec, notes: list[str]) -> Inference:
    """The same function with the target's eps."""
    eps = target.effective_eps
    if eps == read.eps:
        return read
    var = read.var + (read.eps - eps)
    negative = var < 0
    if not negative.any():
        notes.append(f"eps {read.eps:g} -> {eps:g}: {read.eps - eps:+.6g} in the variance")
        return read._replace(var=var, eps=eps)
    base = np.maximum(read.var, 0)
    scale = np.where(negative, np.sqrt((base + eps) / (read.var + read.eps)), 1.0)
    notes.append(
        f"eps {read.eps:g} -> {eps:g}: {read.eps - eps:+.6g} in the variance; in the weight of "
        f"{int(negative.sum())} of {var.size} channels whose variance would be negative "
        f"(times up to {scale.max():.6g})"
    )
    var = np.where(negative, base, var)
    return read._replace(var=var, weight=read.weight * scale, eps=eps)


def _affine(
    state: BatchNormState, read: Inference, target: BatchNormSpec, notes: list[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Weight and bias that the target stores; None where it has none and none is needed."""
    ones = bool(np.all(read.weight == 1))
    no_weight = state.weight is None and ones and not target.has_weight
    no_bias = state.bias is None and not target.has_bias
    if state.weight is None and not no_weight:
        notes.append("weight 1 stands for the one that the source does not have")
    if state.bias is None and not no_bias:
        notes.append("bias 0 stands for the one that the source does not have")
    return None if no_weight else read.weight, None if no_bias else read.bias


def _averaged(
    state: BatchNormState,
    read: Inference,
    specs: tuple[BatchNormSpec, BatchNormSpec],
    notes: list[str],
) -> BatchNormState:
    """Statistics as the target stores them, before its own debiasing."""
    source, target = specs
    count = state.count
    if count is None and state.factor is not None:
        count = _batches_of(state.factor, source)
    if target.debias != "both":
        return BatchNormState(running_mean=read.mean, running_var=read.var, count=count)
    a = target.ema_weight
    if a is None:
        share, count = 1.0, count or 1
    else:
        if not count:
            count = math.ceil(_SETTLED / math.log1p(-a)) if 0 < a < 1 else 1
            notes.append(f"batches seen: not stored; {count} taken, where debiasing has ended")
        share = 1.0 - (1.0 - a) ** count
    factor = None
    if target.stored_average == "sum":
        share = factor = share / a if a else float(count)
    return BatchNormState(
        running_mean=read.mean * share, running_var=read.var * share, count=count, factor=factor
    )


def _batches_of(factor: float, spec: BatchNormSpec) -> int | None:
    """How many batches give Caffe's factor; None where that can no longer be told."""
    a = spec.ema_weight
    if a is None or not 0 < a < 1 or factor * a >= 1 - 1e-6:
        return None
    return round(math.log1p(-factor * a) / math.log1p(-a))


def _rounded(made: BatchNormState, like: BatchNormState) -> BatchNormState:
    wide = np.asarray(like.running_var).dtype == np.float64
    dtype = np.dtype(np.float64 if wide else np.float32)

    def cast(array: Any) -> Any:
        return None if array is None else array.astype(dtype)

    return replace(
        made,
        weight=cast(made.weight),
        bias=cast(made.bias),
        running_mean=cast(made.running_mean),
        running_var=cast(made.running_var),
    )

"""The training form, the inference form and the gradients."""

import warnings
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

from bnkit.core import (
    BatchNormSpec,
    EmptyBatchWarning,
    Gradients,
    InputError,
    Moments,
    NonFiniteError,
    NonFiniteWarning,
    Normalized,
    RunningStats,
    at_least_one_value,
    blended_backward,
    invstd,
    moments,
    normalize,
    normalize_eval_backward,
    read_running,
    upcast,
    update_running,
)
from bnkit.functional.call import Call, check_spec, check_weights, parameter_of, prepare, state_of

Array = Any
OnNonFinite = Literal["skip", "propagate", "raise"]
_DEFAULT = BatchNormSpec()


class Saved(NamedTuple):
    """What `batch_norm_backward` needs of the forward pass; treat it as opaque."""

    at: Normalized
    batch_xhat: Array
    share: float
    dtype: Any
    weight_learns: bool = True


class TrainResult(NamedTuple):
    """Output, new running statistics and what the backward pass needs."""

    y: Array
    state: RunningStats
    saved: Saved


# NaN and infinity are reported in words, not by NumPy's warnings
@np.errstate(invalid="ignore", over="ignore")
def batch_norm_train(
    x: Float[Array, "..."],
    weight: Float[Array, "*c"] | None = None,
    bias: Float[Array, "*c"] | None = None,
    state: RunningStats | None = None,
    spec: BatchNormSpec = _DEFAULT,
    *,
    channel_axis: int | tuple[int, ...] | None = None,
    sample_weights: Float[Array, "..."] | None = None,
    on_nonfinite: OnNonFinite = "skip",
) -> TrainResult:
    """Normalize a batch by its own statistics and average them into the running ones.

    `y = (x - mean) / sqrt(var + eps) * weight + bias` with the mean and the variance (divided by
    n) of the batch per channel (Ioffe & Szegedy 2015, Algorithm 1); statistics are computed in
    at least float32.

    Args:
        x: Batch, at least two dimensions, floating point or complex.
        weight: Scale per channel, or None for 1.
        bias: Shift per channel, or None for 0.
        state: Running statistics so far; None starts with the specification's initial values.
        spec: What batch norm means; PyTorch's by default.
        channel_axis: Axis (or axes) of the channels; the specification's by default.
        sample_weights: Weights that broadcast against `x`, 0 = padding: they weigh the
            statistics, while every element is normalized.
        on_nonfinite: NaN or infinity in the batch statistics: leave the state alone and warn,
            average them in as most frameworks do, or raise.

    Returns:
        `(y, state, saved)`; `y` has the shape and dtype of `x`.

    Raises:
        InputError: Wrong rank, channels, dtype, or one value per channel where the
            specification forbids that.
        NonFiniteError: Only with `on_nonfinite="raise"`.
        SpecError: `eps <= 0`, or a specification with ghost batches, blending or
            renormalization.

    Example:
        >>> import numpy as np
        >>> from bnkit.functional import batch_norm_train
        >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
        >>> y, state, _ = batch_norm_train(x)
        >>> np.round(y, 3).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
        >>> np.round(state.mean, 3).tolist(), np.round(state.var, 3).tolist()
        ([0.2, 2.0], [1.1, 20.9])
    """
    if on_nonfinite not in get_args(OnNonFinite):
        msg = (
            f"batch_norm_train: on_nonfinite must be one of {', '.join(get_args(OnNonFinite))}, "
            f"got {on_nonfinite!r}."
        )
        raise InputError(msg)
    call = prepare("batch_norm_train", x, spec, channel_axis)
    check_spec(call)
    weight, bias = parameter_of(call, "weight", weight), parameter_of(call, "bias", bias)
    weight = None if spec.weight_fixed else weight
    state = state_of(call, state)
    if sample_weights is not None:
        check_weights(call, sample_weights)
    batch = moments(call.x, call.axes, sample_weights, xp=call.xp)
    if sample_weights is not None:
        call = call._replace(x=_without_hidden_nan(call, sample_weights))
    if isinstance(batch.count, int) and batch.count == 1:
        if spec.single_value == "identity":
            return _identity(call, x, state)
        batch = _single_value(call, batch)
    after = _next_state(call, state, batch, on_nonfinite)
    mean, var, share = _normalizing(state, after, batch, spec)
    s = invstd(call.xp, call.spread(var), spec.effective_eps)
    y = normalize(call.x, call.spread(mean), s if weight is None else s * weight, bias)
    xhat = normalize(call.x, call.spread(mean), s)
    count = at_least_one_value(batch.count)
    count = count if isinstance(count, int) else call.spread(count)
    at = Normalized(xhat, s, weight, call.axes, count, sample_weights)
    batch_xhat = xhat if share == 1.0 else normalize(call.x, call.spread(batch.mean), s)
    saved = Saved(at, batch_xhat, share, x.dtype, not spec.weight_fixed)
    return TrainResult(call.xp.astype(y, x.dtype), after, saved)


def batch_norm_eval(
    x: Float[Array, "..."],
    weight: Float[Array, "*c"] | None = None,
    bias: Float[Array, "*c"] | None = None,
    state: RunningStats | None = None,
    spec: BatchNormSpec = _DEFAULT,
    *,
    channel_axis: int | tuple[int, ...] | None = None,
) -> Array:
    """Normalize by the running statistics: a fixed affine map per channel, equation 16.

    Args:
        x: Batch of any size.
        weight: Scale per channel, or None for 1.
        bias: Shift per channel, or None for 0.
        state: Running statistics; None takes the specification's initial values.
        spec: What batch norm means.
        channel_axis: Axis (or axes) of the channels; the specification's by default.

    Returns:
        `y`, with the shape and dtype of `x`.

    Raises:
        InputError: Wrong rank, channels or dtype.
        SpecError: `eps` is negative.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import RunningStats
        >>> from bnkit.functional import batch_norm_eval
        >>> state = RunningStats(np.array([2.0]), np.array([3.0]))
        >>> float(batch_norm_eval(np.array([[4.0]]), state=state)[0, 0])  # (4 - 2) / sqrt(3 + eps)
        1.1546986...
    """
    call = prepare("batch_norm_eval", x, spec, channel_axis)
    weight, bias = parameter_of(call, "weight", weight), parameter_of(call, "bias", bias)
    mean, var = read_running(state_of(call, state), spec)
    s = invstd(call.xp, call.spread(var), spec.effective_eps)
    scale = s if weight is None or spec.weight_fixed else s * weight
    return call.xp.astype(normalize(call.x, call.spread(mean), scale, bias), x.dtype)


@np.errstate(invalid="ignore", over="ignore")
def batch_norm_backward(grad_y: Float[Array, "..."], saved: Saved) -> Gradients:
    """Gradients of `batch_norm_train`, by equations 6, 7 and 8 of the theory page.

    Args:
        grad_y: Gradient of the loss by `y`, shaped like `y`.
        saved: The third result of `batch_norm_train`.

    Returns:
        `(x, weight, bias)`: the first shaped like `x`, the others like the channels. The
        gradient of a weight that is fixed or does not take part is 0.

    Raises:
        InputError: `grad_y` is not shaped like `y`.

    Example:
        >>> import numpy as np
        >>> from bnkit.functional import batch_norm_backward, batch_norm_train
        >>> x = np.array([[1.0], [2.0], [6.0]])
        >>> grads = batch_norm_backward(np.ones((3, 1)), batch_norm_train(x).saved)
        >>> float(abs(grads.x).max()) < 1e-12, grads.bias.tolist()  # y always adds up to the bias
        (True, [3.0])
    """
    at = saved.at
    xp = array_namespace(grad_y)
    if tuple(grad_y.shape) != tuple(at.xhat.shape):
        msg = (
            f"batch_norm_backward: expected a gradient of shape {tuple(at.xhat.shape)}, got "
            f"{tuple(grad_y.shape)}. Give the gradient by the output of the same forward pass."
        )
        raise InputError(msg)
    wide = upcast(xp, grad_y)
    if saved.share == 0.0:
        grads = normalize_eval_backward(xp, at, wide)
    else:
        grads = blended_backward(xp, at, wide, saved.batch_xhat, saved.share)
    by_weight, by_bias = (xp.squeeze(g, axis=at.axes) for g in grads[1:])
    if not saved.weight_learns:
        by_weight = xp.zeros_like(by_weight)
    return Gradients(xp.astype(grads.x, saved.dtype), by_weight, by_bias)


def _normalizing(
    before: RunningStats, after: RunningStats, batch: Moments, spec: BatchNormSpec
) -> tuple[Array, Array, float]:
    """Mean and variance that normalize in training, and the batch's share in them."""
    if spec.train_statistics == "running":
        return *read_running(before, spec), 0.0
    if spec.train_statistics == "updated_running":
        weight = 1.0 if spec.ema_weight is None else spec.ema_weight
        copies = spec.first_batch == "copy" and int(before.batches) == 0
        return *read_running(after, spec), 1.0 if copies else weight
    return batch.mean, batch.var(), 1.0


def _next_state(
    call: Call, state: RunningStats, batch: Moments, on_nonfinite: OnNonFinite
) -> RunningStats:
    if call.spec.update_when == "never":
        return state
    if isinstance(batch.count, int) and batch.count == 0:
        if call.spec.empty_batch == "nan":
            batch = batch._replace(
                count=1, mean=batch.mean * float("nan"), m2=batch.m2 * float("nan")
            )
            return update_running(state, batch, call.spec)
        message = f"{call.where}: the batch holds no samples; the running statistics stay."
        warnings.warn(message, EmptyBatchWarning, stacklevel=3)
        return state
    if on_nonfinite == "propagate" or _finite(call.xp, batch):
        return update_running(state, batch, call.spec)
    message = _describe_nonfinite(call, batch)
    if on_nonfinite == "raise":
        raise NonFiniteError(message)
    warnings.warn(message, NonFiniteWarning, stacklevel=3)
    return state


def _without_hidden_nan(call: Call, sample_weights: Array) -> Array:
    """NaN where nothing is would reach the gradients by way of 0 * NaN."""
    xp = call.xp
    hidden = xp.broadcast_to(sample_weights == 0, call.x.shape) & ~xp.isfinite(call.x)
    return xp.where(hidden, xp.zeros_like(call.x), call.x)


def _finite(xp: Any, batch: Moments) -> bool:
    return bool(xp.all(xp.isfinite(batch.mean)) & xp.all(xp.isfinite(batch.m2)))


def _describe_nonfinite(call: Call, batch: Moments) -> str:
    xp = call.xp
    bad = ~(xp.isfinite(batch.mean) & xp.isfinite(batch.m2))
    bad = xp.nonzero(xp.reshape(bad, (-1,)))[0]
    return (
        f"{call.where}: expected finite values, got NaN or infinity in {bad.shape[0]} channels of "
        f"{call.shape}, the first is number {int(bad[0])}. The running statistics stay. Find "
        "where x overflows; on_nonfinite= chooses between skip, propagate and raise."
    )


def _single_value(call: Call, batch: Moments) -> Moments:
    if call.spec.single_value == "error":
        msg = (
            f"{call.where}: expected more than one value per channel, got x of shape "
            f"{tuple(call.x.shape)}: the variance is 0 and the output would be the bias. Use a "
            "larger batch, drop the last incomplete batch, or normalize with batch_norm_eval."
        )
        raise InputError(msg)
    if call.spec.single_value == "nan":
        return batch._replace(m2=call.xp.full_like(batch.m2, float("nan")))
    return batch


def _identity(call: Call, x: Array, state: RunningStats) -> TrainResult:
    ones = call.xp.ones_like(call.x)
    at = Normalized(call.x, ones, None, call.axes, 1)
    return TrainResult(x, state, Saved(at, call.x, 0.0, x.dtype, weight_learns=False))

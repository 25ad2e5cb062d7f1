"""The arguments of a batch norm on arrays: checked, and brought into one shape."""

from typing import Any, NamedTuple

from array_api_compat import array_namespace

from bnkit.core import (
    BatchNormSpec,
    InputError,
    RunningStats,
    SpecError,
    initial_running,
    real_dtype,
    upcast,
)

Array = Any


class Call(NamedTuple):
    """One call, prepared: the values in the dtype of statistics, and where their channels are."""

    where: str
    xp: Any
    x: Array
    spec: BatchNormSpec
    axes: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the statistics."""
        return tuple(self.x.shape[a] for a in self.channels)

    def spread(self, statistic: Array) -> Array:
        """A statistic, reshaped to broadcast against `x`."""
        kept = (self.x.shape[a] if a in self.channels else 1 for a in range(self.x.ndim))
        return self.xp.reshape(statistic, tuple(kept))


def prepare(
    where: str, x: Array, spec: BatchNormSpec, channel_axis: int | tuple[int, ...] | None
) -> Call:
    """Check the array, the specification and the axes."""
    if not isinstance(spec, BatchNormSpec):
        msg = (
            f"{where}: expected a BatchNormSpec, got {spec!r}. Pass bnkit.preset({spec!r}).spec, "
            "or one of bnkit.core.TORCH, KERAS3, ..."
        )
        raise SpecError(msg)
    if not hasattr(x, "ndim") or not hasattr(x, "dtype"):
        msg = f"{where}: expected an array, got {type(x).__name__}. Pass numpy.asarray(x)."
        raise InputError(msg)
    xp = array_namespace(x)
    axis = spec.channel_axis if channel_axis is None else channel_axis
    channels = (axis,) if isinstance(axis, int) else tuple(axis)
    if x.ndim < 2:
        msg = (
            f"{where}: expected at least 2 dimensions, got shape {tuple(x.shape)}. Add the batch "
            "dimension."
        )
        raise InputError(msg)
    if not all(-x.ndim <= a < x.ndim for a in channels):
        msg = (
            f"{where}: expected channel_axis within the {x.ndim} dimensions of x, got {axis} for "
            f"shape {tuple(x.shape)}. Choose the axis of the channels."
        )
        raise InputError(msg)
    channels = tuple(sorted(a % x.ndim for a in channels))
    axes = tuple(a for a in range(x.ndim) if a not in channels)
    return Call(where, xp, upcast(xp, x), spec, axes, channels)


def check_spec(call: Call) -> None:
    """Refuse what a specification describes but nothing here computes."""
    spec = call.spec
    if not spec.effective_eps > 0:
        msg = f"{call.where}: eps must be > 0 in training, got {spec.eps}. Choose e.g. 1e-5."
        raise SpecError(msg)
    unsupported = {
        "virtual_batch_size": spec.virtual_batch_size is not None,
        "train_statistics": spec.train_statistics in ("blend", "renorm"),
        "tracked_second_moment": spec.tracked_second_moment != "variance",
    }
    for name in (name for name, hit in unsupported.items() if hit):
        msg = (
            f"{call.where}: {name}={getattr(spec, name)!r} is described by the specification but "
            "not computed here. Use the default of that field, or batch_norm_eval."
        )
        raise SpecError(msg)


def check_weights(call: Call, weights: Array) -> None:
    """Refuse weights that do not fit x, or are negative."""
    try:
        spread = call.xp.broadcast_to(weights, call.x.shape)
    except (ValueError, RuntimeError) as error:
        msg = (
            f"{call.where}: expected sample_weights that broadcast against x of shape "
            f"{tuple(call.x.shape)}, got {tuple(weights.shape)}. Add dimensions of size 1."
        )
        raise InputError(msg) from error
    if not bool(call.xp.all(spread >= 0)):
        msg = f"{call.where}: expected sample_weights >= 0, got negative or NaN ones."
        raise InputError(msg)


def parameter_of(call: Call, name: str, value: Array | None) -> Array | None:
    """A weight or bias, spread against x in its dtype."""
    if value is None:
        return None
    _check_shape(call, name, value)
    return call.xp.astype(call.spread(value), call.x.dtype)


def state_of(call: Call, state: RunningStats | None) -> RunningStats:
    """The running statistics given, or those before the first batch."""
    if state is None:
        xp = call.xp
        fresh = initial_running(xp.zeros(call.shape, dtype=real_dtype(xp, call.x)), call.spec)
        return fresh._replace(mean=xp.astype(fresh.mean, call.x.dtype))
    _check_shape(call, "state.mean", state.mean)
    _check_shape(call, "state.var", state.var)
    return state


def _check_shape(call: Call, name: str, value: Array) -> None:
    if tuple(value.shape) != call.shape:
        msg = (
            f"{call.where}: expected {name} of shape {call.shape}, the channels of x, got "
            f"{tuple(value.shape)}. Check channel_axis and the layer that x comes from."
        )
        raise InputError(msg)

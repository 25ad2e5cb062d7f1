"""`tf.nn.moments` and `tf.nn.batch_normalization` on NumPy, torch and other arrays."""

from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Float

from bnkit import core
from bnkit.core import InputError, SpecError, upcast

Array = Any


def moments(
    x: Float[Array, "..."],
    axes: int | Sequence[int],
    shift: Any = None,
    *,
    keepdims: bool = False,
) -> tuple[Array, Array]:
    """Mean and variance (divided by n) over axes: `tf.nn.moments`.

    Two passes in at least float32. TensorFlow gives 16-bit results for 16-bit input; these stay
    in float32. For count and m2, and to merge parts, use `bnkit.core.moments`.

    Args:
        x: Values, floating point or complex.
        axes: Axes to average over; unlike in TensorFlow they may be negative.
        shift: Ignored, as TensorFlow does.
        keepdims: Keep those axes, with size 1.

    Returns:
        Mean and variance; a complex input has a real variance, E|x - mean|**2.

    Raises:
        InputError: `x` is no floating point array, or has no such axis.

    Example:
        >>> import numpy as np
        >>> from bnkit.functional import moments
        >>> mean, variance = moments(np.array([[1.0, 10.0], [3.0, 14.0]]), [0])
        >>> mean.tolist(), variance.tolist()
        ([2.0, 12.0], [1.0, 4.0])
    """
    del shift
    xp = _namespace("moments", x)
    wanted = (axes,) if isinstance(axes, int) else tuple(axes)
    if not all(-x.ndim <= a < x.ndim for a in wanted):
        msg = (
            f"moments: expected axes within the {x.ndim} dimensions of x, got {axes!r} for shape "
            f"{tuple(x.shape)}. Choose the axes to average over."
        )
        raise InputError(msg)
    found = core.moments(x, wanted, xp=xp)
    mean, var = found.mean, found.var()
    if keepdims:
        reduced = {a % x.ndim for a in wanted}
        shape = tuple(1 if a in reduced else x.shape[a] for a in range(x.ndim))
        mean, var = xp.reshape(mean, shape), xp.reshape(var, shape)
    return mean, var


def batch_normalization(
    x: Float[Array, "..."],
    mean: Float[Array, "..."],
    var: Float[Array, "..."],
    bias: Float[Array, "..."] | None = None,
    weight: Float[Array, "..."] | None = None,
    *,
    eps: float,
) -> Array:
    """`(x - mean) / sqrt(var + eps) * weight + bias`: `tf.nn.batch_normalization`.

    TensorFlow's order of arguments: offset (the bias) before scale (the weight), and its
    `variance_epsilon` as `eps`. The statistics broadcast against `x`, so that the channels are
    the last axis for statistics of shape `(c,)`. TensorFlow computes
    `x * scale + (bias - mean * scale)`, which loses `log10(|mean| / std)` digits; here the mean
    is subtracted first.

    Args:
        x: Values.
        mean: Mean, any shape that broadcasts against `x`.
        var: Variance, likewise.
        bias: Shift, likewise, or None for 0.
        weight: Scale, likewise, or None for 1.
        eps: Added to the variance.

    Returns:
        The normalized values, with the shape and dtype of `x`.

    Raises:
        InputError: Arrays that do not broadcast to the shape of `x`, or are not floating point.
        SpecError: A negative `eps`.

    Example:
        >>> import numpy as np
        >>> from bnkit.functional import batch_normalization, moments
        >>> x = np.array([[1.0, 10.0], [3.0, 14.0]])
        >>> batch_normalization(x, *moments(x, [0]), eps=0.0).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """
    xp = _namespace("batch_normalization", x)
    if not eps >= 0:
        msg = f"batch_normalization: expected eps >= 0, got {eps}. Use e.g. 1e-3."
        raise SpecError(msg)
    for name, value in {"mean": mean, "var": var, "bias": bias, "weight": weight}.items():
        if value is not None:
            _check_shape(name, value, x)
    wide = upcast(xp, x)
    scale = core.invstd(xp, upcast(xp, var), eps)
    scale = scale if weight is None else scale * weight
    return xp.astype(core.normalize(wide, mean, scale, bias), x.dtype)


def _namespace(where: str, x: Array) -> Any:
    if not hasattr(x, "ndim") or not hasattr(x, "dtype"):
        msg = f"{where}: expected an array, got {type(x).__name__}. Pass numpy.asarray(x)."
        raise InputError(msg)
    return array_namespace(x)


def _check_shape(name: str, value: Array, x: Array) -> None:
    shape = tuple(value.shape)
    behind = tuple(x.shape)[x.ndim - len(shape) :] if len(shape) <= x.ndim else ()
    fits = len(shape) <= x.ndim and all(a in (1, b) for a, b in zip(shape, behind, strict=True))
    if not fits:
        msg = (
            f"batch_normalization: expected {name} to broadcast against x of shape "
            f"{tuple(x.shape)}, got {shape}. For channels at axis 1 reshape it to (c, 1, ...)."
        )
        raise InputError(msg)

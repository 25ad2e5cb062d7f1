"""Normalization by given moments, and its derivatives in closed form.

Everything here works on keepdims statistics: `mean`, `invstd`, `weight` and `bias` broadcast
against `x`. Equation numbers are those of the theory page. `J` is the Jacobian of `xhat` by `x`
divided by `invstd`; with weights w and N = sum(w),

    (J u)_j   = u_j - sum(w u) / N - xhat_j * sum(w u xhat) / N
    (J^T v)_i = v_i - (w_i / N) * (sum(v) + xhat_i * sum(v xhat)).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from bnkit.core.moments import accumulate, inner

Array = Any


class Normalized(NamedTuple):
    """What the derivatives need of a forward pass; arrays broadcast against each other.

    Attributes:
        xhat: `(x - mean) * invstd`.
        invstd: `1 / sqrt(var + eps)`.
        weight: The scale, or None for 1.
        axes: The axes that the moments were taken over.
        count: Values per channel, or the sum of their weights.
        sample_weights: The weights of the moments, or None for 1.
    """

    xhat: Array
    invstd: Array
    weight: Array | None
    axes: tuple[int, ...]
    count: Any
    sample_weights: Array | None = None


class Gradients(NamedTuple):
    """Gradients by the input, the weight and the bias of a batch norm."""

    x: Array
    weight: Array
    bias: Array


class DoubleGradients(NamedTuple):
    """Gradients of the backward pass by the gradient it was given, the weight and the input."""

    grad_y: Array
    weight: Array
    x: Array


def invstd(xp: Any, var: Array, eps: float) -> Array:
    """`1 / sqrt(var + eps)`."""
    return 1 / xp.sqrt(var + eps)


def normalize(x: Array, mean: Array, scale: Array, bias: Array | None = None) -> Array:
    """`(x - mean) * scale + bias` with `scale = invstd * weight`: equation 4.

    The mean is subtracted first: `x * scale + (bias - mean * scale)` loses
    `log10(|mean| / std)` digits.

    Args:
        x: Values.
        mean: Mean per channel, broadcast against `x`.
        scale: `invstd` or `invstd * weight`.
        bias: Shift, or None.

    Returns:
        The normalized values, shaped like `x`.
    """
    y = (x - mean) * scale
    return y if bias is None else y + bias


def scale_shift(
    xp: Any,
    statistics: tuple[Array, Array],
    weight: Array | None,
    bias: Array | None,
    eps: float,
) -> tuple[Array, Array]:
    """The affine form of inference: `y = x * scale + shift`, equation 16.

    `scale = weight / sqrt(var + eps)`, `shift = bias - mean * scale`: what folding writes into a
    neighbouring layer. To normalize values use `normalize`, which rounds better.

    Args:
        xp: The array namespace.
        statistics: Mean and variance, shape `(c,)`.
        weight: Scale of the batch norm, or None for 1.
        bias: Shift of the batch norm, or None for 0.
        eps: Added to the variance.

    Returns:
        `scale` and `shift`, shape `(c,)`.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import scale_shift
        >>> one = np.ones(1)
        >>> scale, shift = scale_shift(np, (2 * one, 4 * one), 6 * one, one, 0.0)
        >>> float(scale[0]), float(shift[0])
        (3.0, -5.0)
    """
    mean, var = statistics
    scale = invstd(xp, var, eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def normalize_jvp(
    xp: Any, at: Normalized, dx: Array, dweight: Array | None, dbias: Array | None
) -> Array:
    """Forward derivative of the training form: `weight s J dx + dweight xhat + dbias`, eq. 10.

    Args:
        xp: The array namespace.
        at: The forward pass.
        dx: Tangent of `x`.
        dweight: Tangent of the weight, or None.
        dbias: Tangent of the bias, or None.

    Returns:
        Tangent of `y`, shaped like `x`.
    """
    dy = _scaled(at, _jacobian(xp, at, dx))
    dy = dy if dweight is None else dy + dweight * at.xhat
    return dy if dbias is None else dy + dbias


def normalize_backward(
    xp: Any, at: Normalized, grad_y: Array, total: Callable | None = None
) -> Gradients:
    """Gradients of the training form, statistics taken from the batch: equations 6, 7 and 8.

    With `s = invstd`: `grad_x = weight * s * J^T grad_y`, `grad_weight = sum(grad_y * xhat)`,
    `grad_bias = sum(grad_y)` (Ioffe & Szegedy 2015, section 3, with the two sums shared).
    Complex input follows torch's convention for gradients.

    Args:
        xp: The array namespace.
        at: The forward pass.
        grad_y: Gradient of the loss by the output, shaped like `x`.
        total: As for `blended_backward`.

    Returns:
        Gradients, those of weight and bias with kept dimensions.
    """
    return blended_backward(xp, at, grad_y, at.xhat, 1.0, total=total)


def blended_backward(
    xp: Any,
    at: Normalized,
    grad_y: Array,
    batch_xhat: Array,
    share: float,
    *,
    total: Callable | None = None,
) -> Gradients:
    """Gradients where the batch makes up a `share` of the statistics that normalized.

    The statistics are `(1 - share) * constant + share * batch`, so that
    `grad_x = weight * s * (grad_y - share * (w / N) * t)`,
    `t = sum(grad_y) + batch_xhat * sum(grad_y * xhat)`, `batch_xhat = (x - batch mean) * s`.
    A share of 1 is the usual batch norm.

    Args:
        xp: The array namespace.
        at: The forward pass.
        grad_y: Gradient of the loss by the output.
        batch_xhat: Deviation from the batch mean, times `invstd`.
        share: Weight of the batch in the statistics, 0 to 1.
        total: Where `x` is a part of the batch: `total(grad_bias, grad_weight)` gives the sums
            over the whole batch, `at.count` being that of the whole batch too. The gradients of
            weight and bias stay those of the part.

    Returns:
        Gradients, those of weight and bias with kept dimensions.
    """
    grad_bias = _total(xp, at, grad_y)
    grad_weight = _total(xp, at, grad_y * _conj(xp, at.xhat))
    factor = 1 if at.weight is None else _conj(xp, at.weight)
    whole = (grad_bias, grad_weight) if total is None else total(grad_bias, grad_weight)
    carried = whole[0] * factor + batch_xhat * _real(xp, whole[1] * factor)
    grad_x = at.invstd * (grad_y * factor - share * _shares(at) * carried)
    return Gradients(grad_x, grad_weight, grad_bias)


def normalize_eval_backward(xp: Any, at: Normalized, grad_y: Array) -> Gradients:
    """Gradients of the inference form, where the statistics are constants.

    Args:
        xp: The array namespace.
        at: The forward pass, with `xhat` from the running statistics.
        grad_y: Gradient of the loss by the output.

    Returns:
        `weight * invstd * grad_y`, `sum(grad_y * xhat)`, `sum(grad_y)`.
    """
    return Gradients(
        _scaled(at, grad_y),
        _total(xp, at, grad_y * _conj(xp, at.xhat)),
        _total(xp, at, grad_y),
    )


def normalize_double_backward(
    xp: Any, at: Normalized, grad_y: Array, cotangents: Gradients
) -> DoubleGradients:
    """Gradients of `normalize_backward` itself, for real input: equations 11, 12 and 13.

    With `u, a, b` the cotangents of grad_x, grad_weight and grad_bias:

        by grad_y:  weight s J u + a xhat + b
        by weight:  s <J u, grad_y>
        by x:      -weight s^2 (w xhat <J u, grad_y> / N + J^T(w u) <grad_y, xhat> / N
                                + J^T grad_y <w u, xhat> / N) + a s J^T grad_y

    Args:
        xp: The array namespace.
        at: The forward pass.
        grad_y: The gradient that the backward pass was given.
        cotangents: Gradients of the loss by the three results of the backward pass.

    Returns:
        Gradients by grad_y, weight and x; that of weight with kept dimensions.
    """
    u, a, b = cotangents
    ju = _jacobian(xp, at, u)
    wu = u if at.sample_weights is None else u * at.sample_weights
    along = _total(xp, at, ju * grad_y)
    transposed = _jacobian_transposed(xp, at, grad_y)
    curvature = (
        at.xhat * _shares(at) * along
        + _jacobian_transposed(xp, at, wu) * (_total(xp, at, grad_y * at.xhat) / at.count)
        + transposed * (_total(xp, at, wu * at.xhat) / at.count)
    )
    by_x = at.invstd * (a * transposed - _scaled(at, curvature))
    return DoubleGradients(_scaled(at, ju) + a * at.xhat + b, at.invstd * along, by_x)


def _jacobian(xp: Any, at: Normalized, u: Array) -> Array:
    wu = u if at.sample_weights is None else u * at.sample_weights
    along = _total(xp, at, inner(xp, wu, at.xhat))
    return u - (_total(xp, at, wu) + at.xhat * along) / at.count


def _jacobian_transposed(xp: Any, at: Normalized, v: Array) -> Array:
    along = _total(xp, at, inner(xp, v, at.xhat))
    return v - _shares(at) * (_total(xp, at, v) + at.xhat * along)


def _shares(at: Normalized) -> Any:
    return (1 if at.sample_weights is None else at.sample_weights) / at.count


def _scaled(at: Normalized, v: Array) -> Array:
    v = v * at.invstd
    return v if at.weight is None else v * at.weight


def _total(xp: Any, at: Normalized, v: Array) -> Array:
    return accumulate(xp, v, at.axes)


def _conj(xp: Any, v: Array) -> Array:
    return xp.conj(v) if xp.isdtype(v.dtype, "complex floating") else v


def _real(xp: Any, v: Array) -> Array:
    return xp.real(v) if xp.isdtype(v.dtype, "complex floating") else v

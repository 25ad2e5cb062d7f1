"""The folding lemma: a change of statistics is a move of weight and bias."""

from typing import Any, NamedTuple

from array_api_compat import array_namespace

from bnkit.core.normalize import invstd

Array = Any


class Coordinates(NamedTuple):
    """A batch norm for inference as a point in the coordinates of reference statistics.

    Attributes:
        weight: Factor of the value normalized by the reference.
        bias: What is added to it.
    """

    weight: Array
    bias: Array


def reference_coordinates(
    affine: Coordinates,
    statistics: tuple[Array, Array],
    reference: tuple[Array, Array],
    *,
    eps: float,
) -> Coordinates:
    """Weight and bias that do with the reference what these do with other statistics.

    `weight' = weight s0 / s` and `bias' = bias + weight (mean0 - mean) / s` with
    `s = sqrt(var + eps)` (folding lemma; certificates page, statement 19). Statistics estimated
    anew on the bound's examples are paid for by the divergence *in these coordinates* only.

    Args:
        affine: Weight and bias, shape `(c,)`.
        statistics: Mean and variance that the layer uses.
        reference: Mean and variance that were fixed beforehand.
        eps: Of the layer.

    Returns:
        The point in reference coordinates.

    Example:
        >>> import numpy as np
        >>> from bnkit.core.bounds import Coordinates, reference_coordinates
        >>> one, zero = np.ones(1), np.zeros(1)
        >>> moved = reference_coordinates(
        ...     Coordinates(one, zero), (2 * one, 3 * one), (zero, 15 * one), eps=1.0)
        >>> float(moved.weight[0]), float(moved.bias[0])
        (2.0, -1.0)
    """
    mean, var = statistics
    mean0, var0 = reference
    xp = array_namespace(mean, mean0)
    s, s0 = invstd(xp, var, eps), invstd(xp, var0, eps)
    scale = affine.weight * s
    return Coordinates(scale / s0, affine.bias + scale * (mean0 - mean))

"""Whitening: the inverse square root of a covariance, by eigenvectors or by Newton's iteration.

With the covariance S of d channels and W = S**(-1/2), the values W (x - mean) have the identity
as covariance, and of all such values they are the nearest to x - mean (ZCA).
"""

from typing import Any, Literal, NamedTuple, get_args

from bnkit.core.errors import SpecError

Array = Any
Whitening = Literal["zca", "newton"]


class InverseRoot(NamedTuple):
    """`S**(-1/2)` and what its derivatives need.

    Attributes:
        matrix: Shape (..., d, d), symmetric.
        vectors: Eigenvectors of S, as columns.
        roots: Square roots of the eigenvalues, shape (..., d).
    """

    matrix: Array
    vectors: Array
    roots: Array


def inverse_root(xp: Any, covariance: Array) -> InverseRoot:
    """`S**(-1/2) = U diag(s**(-1/2)) U^T` with `S = U diag(s) U^T`.

    The ZCA form of whitening (Huang et al. 2018, arXiv:1804.08450, section 3.2). PCA's form,
    `diag(s**(-1/2)) U^T`, would turn with the eigenvectors from batch to batch.

    Args:
        xp: The array namespace.
        covariance: Symmetric and positive definite, shape (..., d, d).

    Returns:
        The matrix, the eigenvectors and the roots.

    Example:
        >>> import numpy as np
        >>> from bnkit.core import inverse_root
        >>> found = inverse_root(np, np.array([[5.0, 4.0], [4.0, 5.0]]))
        >>> (3 * found.matrix).round(9).tolist()
        [[2.0, -1.0], [-1.0, 2.0]]
    """
    values, vectors = xp.linalg.eigh(covariance)
    roots = xp.sqrt(values)
    return InverseRoot(_conjugated(xp, vectors, 1 / roots), vectors, roots)


def lyapunov(xp: Any, right: Array, vectors: Array, roots: Array) -> Array:
    """The X with `R X + X R = right`, where `R = U diag(roots) U^T`.

    In the basis of U each entry is divided by `roots_i + roots_j`. The derivative of `S**(-1/2)`
    is made of it: `dW = -W X W` with `right = dS` and `R = S**(1/2)`. Nothing is divided by a
    difference of eigenvalues, so equal ones do no harm, unlike in the derivative of eigenvectors.

    Args:
        xp: The array namespace.
        right: Shape (..., d, d).
        vectors: U.
        roots: Positive, shape (..., d).

    Returns:
        X, shape (..., d, d).
    """
    back = xp.matrix_transpose(vectors)
    sums = roots[..., :, None] + roots[..., None, :]
    return vectors @ ((back @ right @ vectors) / sums) @ back


def newton_inverse_root(xp: Any, covariance: Array, iterations: int) -> Array:
    """`S**(-1/2)` by Newton's iteration, from matrix products alone.

    With `N = S / tr(S)`: `P_0 = I`, `P_k = (3 P_{k-1} - P_{k-1}**3 N) / 2`, and
    `W = P_T / sqrt(tr(S))` (IterNorm, Huang et al. 2019, arXiv:1904.03441, algorithm 1). It
    converges because the eigenvalues of N are in (0, 1]; directions of small variance come last,
    so that few iterations whiten them less.

    Computed as `P_k = F P_{k-1}`, `Q_k = Q_{k-1} F`, `F = (3 I - P_{k-1} Q_{k-1}) / 2` from
    `Q_0 = N`: the same numbers in exact arithmetic, since all of them commute. As it is written in
    the paper, the iteration amplifies rounding once it has converged and then diverges (Higham
    2008, *Functions of Matrices*, section 6.4); this one does not.

    Args:
        xp: The array namespace.
        covariance: Symmetric and positive definite, shape (..., d, d).
        iterations: T; 5 in the paper.

    Returns:
        Shape (..., d, d).

    Example:
        >>> import numpy as np
        >>> from bnkit.core import newton_inverse_root
        >>> s = np.array([[5.0, 4.0], [4.0, 5.0]])
        >>> [newton_inverse_root(np, s, t)[0, 0].round(6).item() for t in (3, 8)]
        [0.58095, 0.666667]
    """
    eye = xp.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    trace = xp.sum(covariance * eye, axis=(-2, -1), keepdims=True)
    scaled = covariance / trace
    found, root = eye, scaled
    for step in range(iterations):
        factor = 1.5 * eye - 0.5 * (found @ root)
        found = factor @ found
        if step + 1 < iterations:
            root = root @ factor
    return found / xp.sqrt(trace)


def check_whitening(
    where: str, num_features: int, groups: int, *, method: str, iterations: int
) -> None:
    """Raise `SpecError` for a method, groups or iterations that are none.

    Args:
        where: Head of the message.
        num_features: Channels.
        groups: Must divide them.
        method: `"zca"` or `"newton"`.
        iterations: At least 1.

    Raises:
        SpecError: One of them does not fit.
    """
    if method not in get_args(Whitening):
        words = ", ".join(map(repr, get_args(Whitening)))
        msg = f"{where}: method must be one of {words}, got {method!r}."
        raise SpecError(msg)
    if not isinstance(groups, int) or groups < 1 or num_features % groups:
        msg = (
            f"{where}: groups must be a number that divides the {num_features} channels, got "
            f"{groups!r}. {num_features} groups of one channel are plain batch norm."
        )
        raise SpecError(msg)
    if not isinstance(iterations, int) or iterations < 1:
        msg = (
            f"{where}: iterations must be a positive integer, got {iterations!r}. The paper has 5."
        )
        raise SpecError(msg)


def _conjugated(xp: Any, vectors: Array, diagonal: Array) -> Array:
    return (vectors * diagonal[..., None, :]) @ xp.matrix_transpose(vectors)

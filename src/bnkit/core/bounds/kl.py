"""The relative entropy of two coins, and its two inverses, rounded to the safe side."""

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, plain, unit

# the target of the bisection is raised by more than the rounding errors of `_entropy` can be
_MARGIN = 1e-12
_HALVINGS = 120


def kl(q: Values, p: Values) -> Values:
    """Relative entropy of two coins, in nats (certificates page, statement 1).

    `kl(q || p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p))`, with `0 log 0 = 0`.

    Args:
        q: Observed mean, in [0, 1].
        p: Assumed mean, in [0, 1].

    Returns:
        At least 0; infinite where p is 0 or 1 and q is not.

    Example:
        >>> from bnkit.core.bounds import kl
        >>> round(kl(0.0, 0.5), 6), kl(0.3, 0.3), kl(0.5, 1.0)
        (0.693147, 0.0, inf)
    """
    q, p = np.broadcast_arrays(unit("kl", "q", q), unit("kl", "p", p))
    up = p >= q
    found = np.where(up, _entropy(q, 1 - q, p - q), _entropy(1 - q, q, q - p))
    return plain(found)


def kl_inverse(q: Values, c: Values) -> Values:
    """Largest `p` with `kl(q || p) <= c` (certificates page, statement 1).

    Found by bisection on the distance `p - q`, of which the *upper* end is returned: the result
    never lies below the root, so that a bound made of it keeps its probability.

    Args:
        q: Observed mean, in [0, 1].
        c: Nats per example, at least 0; may be infinite.

    Returns:
        A number in [q, 1].

    Example:
        >>> from bnkit.core.bounds import kl_inverse
        >>> kl_inverse(0.0, 0.6931471805599453) >= 0.5
        True
        >>> round(kl_inverse(0.1, 0.05), 6)
        0.220079
    """
    q, c = np.broadcast_arrays(unit("kl_inverse", "q", q), at_least("kl_inverse", "c", c, 0))
    p = np.nextafter(q + _distance(q, 1 - q, c), 2)
    return plain(np.where(c == 0, q, np.minimum(p, 1.0)))


def kl_inverse_lower(q: Values, c: Values) -> Values:
    """Smallest `p` with `kl(q || p) <= c` (certificates page, statement 1).

    The lower end of the bisection is returned: never above the root.

    Args:
        q: Observed mean, in [0, 1].
        c: Nats per example, at least 0; may be infinite.

    Returns:
        A number in [0, q].

    Example:
        >>> from bnkit.core.bounds import kl_inverse_lower
        >>> round(kl_inverse_lower(0.9, 0.05), 6)
        0.779921
    """
    q, c = np.broadcast_arrays(
        unit("kl_inverse_lower", "q", q), at_least("kl_inverse_lower", "c", c, 0)
    )
    p = np.nextafter(q - _distance(1 - q, q, c), -1)
    return plain(np.where(c == 0, q, np.maximum(p, 0.0)))


def _entropy(q: np.ndarray, rest: np.ndarray, d: np.ndarray) -> np.ndarray:
    """`kl(q || q + d)` for `d >= 0`, with `rest = 1 - q`: its error is relative to d, not to q."""
    # what is as small as 1e-300 adds nothing, and would overflow below the line
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        first = np.where(q > 1e-300, -q * np.log1p(d / q), 0.0)
        second = np.where(rest > 0, -rest * np.log1p(-np.minimum(d / rest, 1.0)), 0.0)
    return np.maximum(first + second, 0.0)


def _distance(q: np.ndarray, rest: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Upper end of the bracket of the `d` with `kl(q || q + d) = c`."""
    target = c * (1 + _MARGIN)
    low = np.zeros(q.shape)
    high = np.minimum(rest, np.sqrt(target / 2) * (1 + _MARGIN))  # Pinsker
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = _entropy(q, rest, middle) > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
        if bool(np.all(high - low <= 2e-16 * high)):
            break
    return high

"""What a bound takes: checked here once, refused in one sentence."""

from typing import Any

import numpy as np

from bnkit.core.errors import CertificateError

Values = Any  # a number, or an array of numbers that broadcasts against the others


def probability(where: str, name: str, value: Values) -> np.ndarray:
    """A failure probability: strictly between 0 and 1.

    Args:
        where: Who asks.
        name: Which argument.
        value: A number or an array.

    Returns:
        The value as an array of float64.

    Raises:
        CertificateError: It lies outside, or is no number.
    """
    p = _numbers(where, name, value)
    if not bool(np.all((p > 0) & (p < 1))):
        msg = (
            f"{where}: expected {name} strictly between 0 and 1, got {_shown(value)}. It is the "
            "probability with which the statement may be wrong; 0.05 is usual."
        )
        raise CertificateError(msg)
    return p


def unit(where: str, name: str, value: Values) -> np.ndarray:
    """A mean of losses: between 0 and 1, both included.

    Args:
        where: Who asks.
        name: Which argument.
        value: A number or an array.

    Returns:
        The value as an array of float64.

    Raises:
        CertificateError: It lies outside, or is no number.
    """
    q = _numbers(where, name, value)
    if not bool(np.all((q >= 0) & (q <= 1))):
        msg = (
            f"{where}: expected {name} between 0 and 1, got {_shown(value)}. Bounds hold for "
            "losses in [0, 1]: use the 0-1 error, or clip and rescale before the data is seen."
        )
        raise CertificateError(msg)
    return q


def whole(where: str, name: str, value: Values, least: int = 1) -> np.ndarray:
    """A number of examples: whole, and at least `least`.

    Args:
        where: Who asks.
        name: Which argument.
        value: A number or an array.
        least: The smallest value with a meaning.

    Returns:
        The value as an array of float64, which holds whole numbers up to 2**53.

    Raises:
        CertificateError: It is smaller, or not whole.
    """
    n = _numbers(where, name, value)
    if not bool(np.all((n >= least) & (n == np.floor(n)) & (n <= 2.0**53))):
        msg = (
            f"{where}: expected {name} to be a whole number of at least {least}, "
            f"got {_shown(value)}. Count independent examples, not pixels, copies or batches."
        )
        raise CertificateError(msg)
    return n


def at_least(where: str, name: str, value: Values, least: float, *, strict: bool = False) -> Any:
    """A number that must not be smaller than something; infinity is let through.

    Args:
        where: Who asks.
        name: Which argument.
        value: A number or an array.
        least: The limit.
        strict: The limit itself is refused as well.

    Returns:
        The value as an array of float64.

    Raises:
        CertificateError: It is smaller, or no number.
    """
    x = _numbers(where, name, value)
    if not bool(np.all((x > least) if strict else (x >= least))):
        sign = ">" if strict else ">="
        msg = f"{where}: expected {name} {sign} {least:g}, got {_shown(value)}."
        raise CertificateError(msg)
    return x


def plain(x: np.ndarray) -> Values:
    """A float where an array without axes would come back."""
    return float(x) if np.ndim(x) == 0 else x


def _numbers(where: str, name: str, value: Values) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        msg = f"{where}: expected {name} to be a number, got {_shown(value)}."
        raise CertificateError(msg) from None


def _shown(value: Values) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

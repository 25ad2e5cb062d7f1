"""Shares in per cent: one rule of rounding, which the script of the page follows too."""

from decimal import ROUND_HALF_UP, Decimal

DIGITS = 12  # a mean of decimals is that decimal again, whatever the last bits of its sum


def percent(share: float, digits: int = 0) -> str:
    """Write a share in per cent, rounded half up on its decimal value.

    Without decimals something is never rounded to nothing, nor a part to the whole.

    Args:
        share: Between 0 and 1.
        digits: Decimals.

    Returns:
        The number, a space and the sign.

    Example:
        >>> percent(0.2125, 1), percent(0.99, 1), percent(0.545)
        ('21.3 %', '99.0 %', '55 %')
        >>> percent(0.0001), percent(0.9999), percent(1.0)
        ('<1 %', '>99 %', '100 %')
    """
    if digits == 0 and 0 < share < 0.005:
        return "<1 %"
    if digits == 0 and 0.995 < share < 1:
        return ">99 %"
    return f"{points(share, digits)} %"


def points(share: float, digits: int = 1) -> str:
    """Write a share, or a difference of shares, in percentage points, without the sign.

    Args:
        share: Not negative.
        digits: Decimals.

    Returns:
        The number.

    Example:
        >>> points(0.0335), points(0.0)
        ('3.4', '0.0')
    """
    unit = Decimal(1).scaleb(-digits)
    value = Decimal(f"{share:.{DIGITS}g}").scaleb(2).quantize(unit, ROUND_HALF_UP)
    return f"{value:f}"

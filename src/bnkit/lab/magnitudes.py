"""Small numbers as people write them."""

from math import floor, log10

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def magnitude(value: float | None) -> str:
    """Two digits times a power of ten.

    Args:
        value: Any finite number, or None where there is none.

    Returns:
        The number; `–` for None.

    Example:
        >>> magnitude(3.14e-7), magnitude(1e-5), magnitude(-9.96e-7), magnitude(0.0)
        ('3.1×10⁻⁷', '10⁻⁵', '-10⁻⁶', '0')
        >>> magnitude(None)
        '–'
    """
    if value is None:
        return "–"
    if value == 0:
        return "0"
    exponent = floor(log10(abs(value)))
    mantissa = f"{abs(value) / 10.0**exponent:.2g}"
    if mantissa == "10":
        mantissa, exponent = "1", exponent + 1
    raised = "10" + str(exponent).translate(_RAISED)
    sign = "-" if value < 0 else ""
    return f"{sign}{raised}" if mantissa == "1" else f"{sign}{mantissa}×{raised}"

"""The limits of batch renormalization, from what users write."""

from collections.abc import Mapping
from typing import Any

from bnkit.core import RenormLimits, RenormSchedule, SpecError

_KEYS = ("rmin", "rmax", "dmax")


def renorm_limits(where: str, given: Any) -> RenormLimits | RenormSchedule:
    """Limits from None (no bounds), a mapping as TensorFlow's `renorm_clipping`, or limits.

    Args:
        where: Head of an error message.
        given: What the user wrote; any object with `at(batches) -> limits` is a schedule.

    Returns:
        An object with `at(batches)`.

    Raises:
        SpecError: Something else, or an unknown key.
    """
    if given is None:
        return RenormLimits()
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in _KEYS]
        if unknown:
            msg = (
                f"{where}: expected the limits of batch renormalization to have the keys rmin, "
                f"rmax or dmax, got {unknown[0]!r}. A missing key is no bound."
            )
            raise SpecError(msg)
        return RenormLimits(**given)
    if isinstance(given, type) or not callable(getattr(given, "at", None)):
        msg = (
            f"{where}: expected the limits of batch renormalization as RenormLimits(rmin=, rmax=, "
            f"dmax=), RenormSchedule(...) or a mapping, got {given!r}."
        )
        raise SpecError(msg)
    return given

"""Whether freed memory stays with the process: the difference of a page fault for every page."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h of glibc
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep what is freed, for the rest of the process.

    By default an output of 25 MB is sometimes given back to the system and sometimes not,
    depending on what lies above it; its next page faults cost more than the batch norm itself.

    Returns:
        Whether the C library did so; others than glibc are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_MAX, 0))

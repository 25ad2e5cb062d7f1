"""Keys of examples, by which an example in two splits is found."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from bnkit.core.errors import CertificateError

_SHOWN = 3


def example_keys(x: np.ndarray) -> list[bytes]:
    """One key for each example: equal bytes, equal key.

    Args:
        x: Examples along axis 0.

    Returns:
        Digests of shape, dtype and bytes of each.

    Example:
        >>> import numpy as np
        >>> from bnkit.certify import example_keys
        >>> a, b, c = example_keys(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]))
        >>> a == b, a == c
        (True, False)
    """
    rows = np.ascontiguousarray(x)
    kind = blake2b(f"{rows.dtype.str}{rows.shape[1:]}".encode(), digest_size=16).digest()
    return [blake2b(row.tobytes(), digest_size=16, key=kind).digest() for row in rows]


def refuse_overlap(build: Iterable[bytes], bound: Sequence[bytes]) -> None:
    """Refuse examples that stand in both splits.

    Args:
        build: Keys of what the network was built with: training, statistics, choices.
        bound: Keys of what the bound will use.

    Raises:
        CertificateError: At least one is in both.
    """
    known = set(build)
    places = [i for i, key in enumerate(bound) if key in known]
    if places:
        shown = ", ".join(map(str, places[:_SHOWN])) + (", ..." if len(places) > _SHOWN else "")
        msg = (
            f"certify: expected no example of the bound set among those the network was built "
            f"with, got {len(places)} of {len(bound)} (positions {shown}). Remove the copies from "
            "one of the two, and split by group if examples come in families."
        )
        raise CertificateError(msg)

"""Splits whose bound part stays shut until the network is sealed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnkit.core.bounds.domain import probability, whole
from bnkit.core.errors import CertificateError


class BoundSet:
    """Positions of the examples that a bound may use, released to sealed networks only.

    A bound needs a network that is fixed before its examples (certificates page, setting). So
    the positions are given for a seal, the hash of everything that will not change any more, and
    for as many different seals as were announced; each of these has `delta / candidates`.

    Args:
        positions: Of the examples.
        candidates: How many networks will be judged by them, announced beforehand.

    Example:
        >>> from bnkit.certify import BoundSet
        >>> held = BoundSet([4, 7, 9])
        >>> len(held), held.release("3f9a").tolist()
        (3, [4, 7, 9])
    """

    def __init__(self, positions: Sequence[int] | np.ndarray, candidates: int = 1) -> None:
        self._positions = np.array(positions, dtype=np.int64)
        self._positions.setflags(write=False)
        if self._positions.ndim != 1 or not len(self._positions):
            msg = "BoundSet: expected at least one position, got none. Hold out more examples."
            raise CertificateError(msg)
        if len(np.unique(self._positions)) != len(self._positions):
            msg = "BoundSet: expected every position once, got repetitions."
            raise CertificateError(msg)
        self._candidates = int(whole("BoundSet", "candidates", candidates))
        self._seals: list[str] = []

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def seals(self) -> tuple[str, ...]:
        """Whom the examples have been released to."""
        return tuple(self._seals)

    @property
    def candidates(self) -> int:
        """How many different seals there may be."""
        return self._candidates

    def share(self, delta: float) -> float:
        """What one of the announced candidates may fail with.

        Args:
            delta: For all of them together.

        Returns:
            `delta / candidates`.
        """
        return float(probability("BoundSet", "delta", delta)) / self._candidates

    def release(self, seal: str) -> np.ndarray:
        """The positions, for a sealed network.

        Args:
            seal: Hash of weights, statistics and everything else that decides predictions.

        Returns:
            Positions, read-only.

        Raises:
            CertificateError: No seal, or one more than were announced.
        """
        if not isinstance(seal, str) or not seal.strip():
            msg = (
                "BoundSet: expected the seal of a network, got none. Seal it first: a network "
                "that can still change is not fixed before the examples."
            )
            raise CertificateError(msg)
        if seal not in self._seals:
            if len(self._seals) >= self._candidates:
                msg = (
                    f"BoundSet: expected one of the {self._candidates} announced networks, got "
                    f"another one ({seal[:12]}). These examples have been seen: use fresh ones, "
                    "or announce candidates=J beforehand and pay delta / J for each."
                )
                raise CertificateError(msg)
            self._seals.append(seal)
        return self._positions

    def __iter__(self) -> Any:
        msg = "BoundSet: its positions are released by release(seal) only, after sealing."
        raise CertificateError(msg)

    def __getitem__(self, _: Any) -> Any:
        return iter(self)

    def __array__(self, *_: Any, **__: Any) -> Any:
        return iter(self)

    def __repr__(self) -> str:
        return f"BoundSet({len(self)} examples, released to {len(self._seals)})"


@dataclass(frozen=True)
class Split:
    """Examples to build with, and examples to judge by.

    Attributes:
        build: Positions for training, statistics and every choice.
        bound: The rest, shut.
    """

    build: np.ndarray
    bound: BoundSet


def split(
    n: int,
    share: float,
    *,
    seed: int,
    groups: Sequence[Any] | np.ndarray | None = None,
    candidates: int = 1,
) -> Split:
    """Divide examples at random, once, without a look at labels.

    Groups (patients, videos, sites) are never torn apart. They then are the independent units:
    the bound needs one loss for each group. Labels do not enter: equal shares of the classes in
    both parts would make the examples dependent.

    Args:
        n: Examples.
        share: Of examples, or of groups, for the bound; in (0, 1).
        seed: Of the permutation.
        groups: The group of each example, if there are any.
        candidates: How many networks will be judged.

    Returns:
        The split.

    Raises:
        CertificateError: One of the parts would be empty, or groups of another length.

    Example:
        >>> from bnkit.certify import split
        >>> parts = split(6, 0.5, seed=0, groups=["a", "a", "b", "b", "c", "c"])
        >>> parts.build.tolist(), parts.bound
        ([2, 3], BoundSet(4 examples, released to 0))
    """
    n = int(whole("split", "n", n))
    share = float(probability("split", "share", share))
    if groups is not None and len(groups) != n:
        msg = f"split: expected a group for each of {n} examples, got {len(groups)}."
        raise CertificateError(msg)
    if groups is None:
        of, units = np.arange(n), n
    else:
        names, of = np.unique(np.asarray(groups), return_inverse=True)
        units = len(names)
    held = round(share * units)
    if not 0 < held < units:
        msg = (
            f"split: expected units for both parts, got {held} of {units} for the bound. Use more "
            "examples (or groups), or another share."
        )
        raise CertificateError(msg)
    chosen = np.random.default_rng(seed).permutation(units)[:held]
    bound = np.isin(of, chosen)
    return Split(np.flatnonzero(~bound), BoundSet(np.flatnonzero(bound), candidates))

"""What a simulated world answers: in how many repeats a bound lay on the wrong side."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["bound", "cheat"]


class Outcome(NamedTuple):
    """One world, many repeats.

    Attributes:
        violated: Shape `(repeats,)`; True where the statement was false.
        bound: Mean of the bound, or of the half width of the set.
        truth: Mean of what was bounded.
    """

    violated: np.ndarray
    bound: float
    truth: float


def above(bound: np.ndarray, truth: np.ndarray | float) -> Outcome:
    """The outcome of an upper bound.

    Args:
        bound: Shape `(repeats,)`.
        truth: What must not be larger.

    Returns:
        Violated where it is.
    """
    return Outcome(bound < truth, float(np.mean(bound)), float(np.mean(truth)))


def between(ends: tuple[np.ndarray, np.ndarray], truth: float) -> Outcome:
    """The outcome of a two-sided set.

    Args:
        ends: Lower and upper end, each of shape `(repeats,)`.
        truth: What must lie between.

    Returns:
        Violated where it does not.
    """
    lower, upper = ends
    width = float(np.mean(upper - lower)) / 2
    return Outcome((truth < lower) | (truth > upper), width, truth)


@dataclass(frozen=True)
class World:
    """A law of which everything is known, and a bound in it.

    Attributes:
        name: As it stands in the table.
        kind: "bound" = has to hold; "cheat" = has to be seen failing.
        run: `run(rng, repeats, delta)`.
    """

    name: str
    kind: Kind
    run: Callable[[np.random.Generator, int, float], Outcome]

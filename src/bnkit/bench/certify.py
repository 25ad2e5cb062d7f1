"""Whether bounds hold as often as they say, in worlds of which the truth is known."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import numpy as np
from scipy import stats

from bnkit.bench.certify_outcome import Kind, World
from bnkit.bench.certify_posteriors import WORLDS as POSTERIORS
from bnkit.bench.certify_streams import WORLDS as STREAMS
from bnkit.bench.run import Progress, silent
from bnkit.core.bounds.domain import probability, whole

SCHEMA = "bnkit.bench.certify/1"
DELTAS = (0.05, 0.2, 0.5)
REPEATS = 2000
CHANCE = 0.001
HEADS = ("world", "delta", "violated", "allowed", "bound", "truth", "verdict")
WORLDS: tuple[World, ...] = tuple(
    w for kind in ("bound", "cheat") for w in (*STREAMS, *POSTERIORS) if w.kind == kind
)


@dataclass(frozen=True)
class Judgement:
    """One world at one delta.

    Attributes:
        world: Its name.
        kind: "bound" has to hold, "cheat" has to be seen failing.
        delta: How often the statement may fail.
        repeats: How often it was made.
        violations: How often it was false.
        allowed: Most violations that a bound with exactly this delta has in 999 of 1000 runs.
        bound: Mean of the bound, or of the half width of the set.
        truth: Mean of what was bounded.
    """

    world: str
    kind: Kind
    delta: float
    repeats: int
    violations: int
    allowed: int
    bound: float
    truth: float

    @property
    def passed(self) -> bool:
        """Bounds stay within what is allowed; cheats do not."""
        return (self.violations <= self.allowed) == (self.kind == "bound")

    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADS`."""
        sign = "<=" if self.kind == "bound" else "> "
        return (
            self.world if self.kind == "bound" else f"cheat: {self.world}",
            f"{self.delta:g}",
            f"{self.violations / self.repeats:.4f}",
            f"{sign} {self.allowed / self.repeats:.4f}",
            f"{self.bound:.4f}",
            f"{self.truth:.4f}",
            "pass" if self.passed else "falls short",
        )


@dataclass(frozen=True)
class CertifyReport:
    """A whole run."""

    date: str
    seed: int
    repeats: int
    chance: float
    seconds: float
    judgements: tuple[Judgement, ...]

    @property
    def passed(self) -> bool:
        """Whether every bound held and every cheat was seen."""
        return all(j.passed for j in self.judgements)

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` writes."""
        rows = [asdict(j) | {"passed": j.passed} for j in self.judgements]
        return {"schema": SCHEMA, **asdict(self), "judgements": rows, "passed": self.passed}


def allowance(repeats: int, delta: float, chance: float = CHANCE) -> int:
    """Smallest a with `P(Bin(repeats, delta) > a) <= chance`.

    A bound that fails with probability delta at most is falsely accused with probability
    `chance` at most; one that fails more often by four standard errors is found out almost surely.

    Args:
        repeats: Independent repeats.
        delta: Probability of failure of each.
        chance: Of a false accusation.

    Returns:
        Violations that are allowed.

    Example:
        >>> allowance(2000, 0.05)
        131
    """
    return int(stats.binom.isf(chance, repeats, delta))


def judge(world: World, repeats: int, delta: float, rng: np.random.Generator) -> Judgement:
    """Run one world.

    Args:
        world: Which.
        repeats: Independent repeats.
        delta: Probability of failure that the bound is given.
        rng: Source of all randomness.

    Returns:
        What was found.
    """
    found = world.run(rng, repeats, delta)
    counts = int(found.violated.sum()), allowance(repeats, delta)
    return Judgement(world.name, world.kind, delta, repeats, *counts, found.bound, found.truth)


def run_certify(
    repeats: int = REPEATS,
    seed: int = 0,
    worlds: tuple[World, ...] = WORLDS,
    *,
    progress: Progress = silent,
) -> CertifyReport:
    """Make every statement many times where the truth is known, and count when it is false.

    Args:
        repeats: Independent repeats for each world and delta.
        seed: Each world has a stream of its own, so that a new one changes no other.
        worlds: Which.
        progress: Told how far it is.

    Returns:
        The report; nothing is written.
    """
    whole("run_certify", "repeats", repeats)
    start, found = perf_counter(), []
    progress("certify", 0, len(worlds), "")
    for i, world in enumerate(worlds, 1):
        for delta in DELTAS:
            probability("run_certify", "delta", delta)
            key = (seed, *world.name.encode(), int(delta * 1000))
            found.append(judge(world, repeats, delta, np.random.default_rng(key)))
        progress("certify", i, len(worlds), world.name)
    return CertifyReport(
        date=datetime.now(UTC).date().isoformat(),
        seed=seed,
        repeats=repeats,
        chance=CHANCE,
        seconds=round(perf_counter() - start, 1),
        judgements=tuple(found),
    )

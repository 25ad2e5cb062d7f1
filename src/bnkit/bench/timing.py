"""Interleaved medians: what is compared is run in turn, so that a slow moment hits all alike."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import Any

from bnkit.bench.quiet import Patience, Watch
from bnkit.bench.results import Timing

_BLOCK = 0.1  # seconds; the system counts processor time in hundredths
_SLOW = 0.02  # seconds; what takes longer is warm after fewer calls


@dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        run: The timed call; it is given what `prepare` returned.
        prepare: Called before each timed call, outside of the time.
    """

    run: Callable[..., Any]
    prepare: Callable[[], Any] | None = None

    def seconds(self, repetitions: int) -> float:
        """Time of that many calls.

        Args:
            repetitions: Number of calls.

        Returns:
            Seconds in all.
        """
        run = self.run
        if self.prepare is None:
            start = perf_counter()
            for _ in range(repetitions):
                run()
            return perf_counter() - start
        total = 0.0
        given = None
        for _ in range(repetitions):
            given = None  # the graph before is freed outside of the time as well
            given = self.prepare()
            start = perf_counter()
            run(given)
            total += perf_counter() - start
        return total


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        sample: Seconds that one sample takes at least.
        budget: Seconds for all samples of one comparison, if `least` allows.
        least: Rounds at least; every round takes one sample of each.
        most: Rounds at most.
    """

    sample: float = 2e-3
    budget: float = 1.0
    least: int = 7
    most: int = 31


def interleaved(
    works: Mapping[str, Work], plan: Plan, patience: Patience | None = None
) -> tuple[tuple[Timing, ...], float | None]:
    """Time several things in turn; every round begins with another of them.

    Rounds are counted in blocks of a tenth of a second. A block that other processes disturbed is
    measured again as long as patience lasts.

    Args:
        works: What to time, by name.
        plan: How long.
        patience: Time for waiting and measuring again; None = none.

    Returns:
        One timing for each, in the same order: median and quartiles of the samples; and the share
        of the processor that others took during these samples.
    """
    samples, repetitions, others = measured(works, plan, patience)
    timings = tuple(_timing(name, samples[name], repetitions[name]) for name in works)
    return timings, others


def measured(
    works: Mapping[str, Work], plan: Plan, patience: Patience | None = None
) -> tuple[dict[str, list[float]], dict[str, int], float | None]:
    """The samples behind `interleaved`, for ratios of two things within each round.

    Args:
        works: What to time, by name.
        plan: How long.
        patience: Time for waiting and measuring again; None = none.

    Returns:
        Seconds of one call by name, one for each round; calls in one sample; and the share of the
        processor that others took during these samples.
    """
    wait = Patience() if patience is None else patience
    names = list(works)
    samples: dict[str, list[float]] = {name: [] for name in names}
    shares: list[float | None] = []
    with _no_collection():
        repetitions, once = _calibrated(works, plan)
        rounds = min(plan.most, max(plan.least, int(plan.budget / once)))
        block = min(rounds, math.ceil(_BLOCK / once))
        while len(samples[names[0]]) < rounds:
            watch = Watch()
            turns = [_turn(works, repetitions, _rotated(names, k)) for k in range(block)]
            others = watch.others()
            if wait.refuses(others, watch.elapsed()):
                continue
            shares.append(others)
            for turn in turns:
                for name, seconds in turn.items():
                    samples[name].append(seconds)
    known = [share for share in shares if share is not None]
    return samples, repetitions, max(known) if known else None


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


def _calibrated(works: Mapping[str, Work], plan: Plan) -> tuple[dict[str, int], float]:
    """Calls in one sample of each, and the seconds of one round."""
    repetitions, once = {}, 0.0
    for name, work in works.items():
        first = work.seconds(1)
        single = min(work.seconds(1) for _ in range(2 if first > _SLOW else 8))
        repetitions[name] = max(1, math.ceil(plan.sample / max(single, 1e-9)))
        once += repetitions[name] * single
    return repetitions, once


def _turn(
    works: Mapping[str, Work], repetitions: Mapping[str, int], order: list[str]
) -> dict[str, float]:
    return {name: works[name].seconds(repetitions[name]) / repetitions[name] for name in order}


def _timing(name: str, samples: list[float], repetitions: int) -> Timing:
    low, median, high = quantiles(samples, n=4, method="inclusive")
    return Timing(name, median, low, high, len(samples), repetitions)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

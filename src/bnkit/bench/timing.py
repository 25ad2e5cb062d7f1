"""Interleaved medians: what is compared is run in turn, so that a slow moment hits all alike."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import Any

from bnkit.bench.results import Timing


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
        for _ in range(repetitions):
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


def interleaved(works: Mapping[str, Work], plan: Plan) -> tuple[Timing, ...]:
    """Time several things in turn; every round begins with another of them.

    Args:
        works: What to time, by name.
        plan: How long.

    Returns:
        One timing for each, in the same order: median and quartiles of the samples.
    """
    names = list(works)
    with _no_collection():
        repetitions, once = {}, 0.0
        for name in names:
            works[name].seconds(2)
            single = min(works[name].seconds(1) for _ in range(2))
            repetitions[name] = max(1, math.ceil(plan.sample / max(single, 1e-9)))
            once += repetitions[name] * single
        rounds = min(plan.most, max(plan.least, int(plan.budget / once)))
        samples: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(works[name].seconds(repetitions[name]) / repetitions[name])
    return tuple(_timing(name, samples[name], repetitions[name]) for name in names)


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

"""The whole benchmark: the gate, the layers, the networks, the verdict."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from time import perf_counter

import torch

from bnkit.bench.gate import MEANS, check_shape, require
from bnkit.bench.machine import describe, load
from bnkit.bench.memory import keep_freed_memory
from bnkit.bench.networks import NETWORKS
from bnkit.bench.providers import BNKIT, Layers, copies, make_inputs, prepare, work_of
from bnkit.bench.quiet import Patience
from bnkit.bench.results import Check, Measurement, Report, Step
from bnkit.bench.shapes import TINY, Level, MemoryFormat, Shape, shapes_of
from bnkit.bench.steps import measure_steps
from bnkit.bench.targets import outcomes
from bnkit.bench.timing import Plan, Work, interleaved
from bnkit.bench.traffic import Direction, Operator, array_bytes, floor_bytes

OPERATORS: tuple[Operator, ...] = ("bn", "bn_relu", "bn_add_relu")
_PLAN = Plan()
_STEP_PLAN = Plan(sample=0.0, budget=12.0, least=5)

# progress(stage, done, total, note)
Progress = Callable[[str, int, int, str], None]


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class BenchConfig:
    """What is run.

    Attributes:
        level: "quick" (under three minutes on two cores), "normal" or "full".
        threads: Threads of torch, which bnkit follows; None leaves them.
        shapes: Other shapes than those of the level.
        networks: Which networks are trained.
        compiled: "compile", and "bnkit_compile" for bnkit's layers under torch.compile.
        plan: How long one comparison of layers is measured.
        step_plan: How long one network is measured.
        checked: Whose numbers pass the gate.
        patience: Seconds for waiting and measuring again while other processes compute.
        keep_memory: Let no layer pay for page faults; holds for the rest of the process.
    """

    level: Level = "normal"
    threads: int | None = None
    shapes: tuple[Shape, ...] | None = None
    networks: tuple[str, ...] = tuple(NETWORKS)
    compiled: tuple[str, ...] = ("compile",)
    plan: Plan = _PLAN
    step_plan: Plan = _STEP_PLAN
    checked: Layers = BNKIT
    patience: float = 0.0
    keep_memory: bool = False

    @property
    def suite(self) -> tuple[Shape, ...]:
        """The shapes that are measured."""
        return shapes_of(self.level) if self.shapes is None else self.shapes


def config_of(level: Level, *, threads: int | None = None, patience: float = 0.0) -> BenchConfig:
    """The configuration of a level.

    Args:
        level: "quick", "normal" or "full".
        threads: Threads of torch; None leaves them.
        patience: Seconds for waiting until other processes are quiet.

    Returns:
        The configuration.
    """
    common = BenchConfig(level=level, threads=threads, patience=patience, keep_memory=True)
    if level == "quick":
        plan, step_plan = Plan(budget=0.4, least=5, most=15), Plan(sample=0.0, budget=3.0, least=3)
        return replace(common, plan=plan, step_plan=step_plan)
    if level == "full":
        both = ("compile", "bnkit_compile")
        return replace(common, plan=Plan(budget=2.0, least=9, most=51), compiled=both)
    return common


def run_bench(config: BenchConfig, *, progress: Progress = silent) -> Report:
    """Run the gate, then the clock.

    Args:
        config: What is run.
        progress: Told how far it is.

    Returns:
        The report; nothing is written.

    Raises:
        GateError: Wrong numbers; nothing was timed.
    """
    start, before = perf_counter(), load()
    with torch_threads(config.threads):
        checks = _gate(config, progress)
        patience = Patience(config.patience)
        steps = _networks(config, patience, progress)  # first: with the allocator as it is
        if config.keep_memory:
            keep_freed_memory()
        measurements = _layers(config, patience, progress)
        machine = describe(before)
    return Report(
        date=datetime.now(UTC).date().isoformat(),
        level=config.level,
        seconds=round(perf_counter() - start, 1),
        machine=machine,
        outcomes=outcomes(measurements, steps, checks),
        measurements=measurements,
        steps=steps,
        checks=checks,
    )


@contextmanager
def torch_threads(wanted: int | None) -> Iterator[None]:
    """Set the number of torch's threads for a while.

    Args:
        wanted: Their number; None leaves it.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gate(config: BenchConfig, progress: Progress) -> tuple[Check, ...]:
    found: list[Check] = []
    suite = (*config.suite, TINY)
    cases: list[tuple[Shape, Operator, float]] = list(product(suite, OPERATORS, MEANS))
    progress("gate", 0, len(cases), "")
    for i, (shape, operator, mean) in enumerate(cases, 1):
        checks = check_shape(shape, operator, mean, layers=config.checked)
        require(checks)
        found += checks
        progress("gate", i, len(cases), _name(shape))
    return tuple(found)


def _layers(config: BenchConfig, patience: Patience, progress: Progress) -> tuple[Measurement, ...]:
    found: list[Measurement] = []
    cases: list[tuple[Shape, MemoryFormat, Operator]] = [
        (s, f, o) for s in config.suite for f in s.formats for o in OPERATORS
    ]
    cases.append((TINY, "contiguous", "bn"))
    progress("layers", 0, len(cases), "")
    for i, (shape, memory_format, operator) in enumerate(cases, 1):
        found += _measure((shape, memory_format, operator), config, patience)
        progress("layers", i, len(cases), f"{operator} {_name(shape)} {memory_format}")
    return tuple(found)


def _measure(
    case: tuple[Shape, MemoryFormat, Operator], config: BenchConfig, patience: Patience
) -> list[Measurement]:
    """One operator on one input: the compiled layers are shared by its directions."""
    shape, memory_format, operator = case
    inputs = make_inputs(shape, memory_format, operator)
    size = array_bytes(shape.sizes)
    found = []
    for training, directions in _passes(operator, config.level):
        compiled = config.compiled if training or config.level != "quick" else ()
        ready = prepare(operator, inputs, training=training, compiled=compiled)
        for direction in directions:
            works: dict[str, Work] = {
                name: work_of(layer, parameters, inputs, direction)
                for name, (layer, parameters) in ready.layers.items()
            }
            works |= copies(inputs.x)
            timings, others = interleaved(works, config.plan, patience)
            found.append(
                Measurement(
                    shape.network,
                    shape.sizes,
                    memory_format,
                    operator,
                    direction,
                    size,
                    floor_bytes(operator, direction, shape.sizes),
                    timings,
                    ready.missing,
                    others,
                )
            )
    return found


def _passes(operator: Operator, level: Level) -> list[tuple[bool, tuple[Direction, ...]]]:
    if operator == "bn":
        passes: list[tuple[bool, tuple[Direction, ...]]] = [
            (True, ("forward", "backward", "forward_backward"))
        ]
        return passes if level == "quick" else [*passes, (False, ("eval",))]
    return [(True, ("forward_backward",))]


def _networks(config: BenchConfig, patience: Patience, progress: Progress) -> tuple[Step, ...]:
    formats: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")
    cases: list[tuple[str, MemoryFormat]] = list(product(config.networks, formats))
    found = []
    progress("networks", 0, len(cases), "")
    for i, (name, memory_format) in enumerate(cases, 1):
        found.append(measure_steps(name, memory_format, config.step_plan, patience=patience))
        progress("networks", i, len(cases), f"{name} {memory_format}")
    return tuple(found)


def _name(shape: Shape) -> str:
    return "x".join(map(str, shape.sizes))

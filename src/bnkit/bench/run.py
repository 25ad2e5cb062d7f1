"""The whole benchmark: the gate, the layers, the networks, the verdict."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

import torch

from bnkit.bench.gate import MEANS, check_shape, require
from bnkit.bench.machine import describe, load
from bnkit.bench.networks import NETWORKS
from bnkit.bench.providers import BNKIT, Layers, copies, make_inputs, prepare, work_of
from bnkit.bench.results import Check, Measurement, Report, Step
from bnkit.bench.shapes import TINY, Level, MemoryFormat, Shape, shapes_of
from bnkit.bench.steps import measure_steps
from bnkit.bench.targets import outcomes
from bnkit.bench.timing import Plan, Work, interleaved
from bnkit.bench.traffic import Direction, Operator, array_bytes, floor_bytes

OPERATORS: tuple[Operator, ...] = ("bn", "bn_relu", "bn_add_relu")
_SCRATCH = 7_500_000

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
    """

    level: Level = "normal"
    threads: int | None = None
    shapes: tuple[Shape, ...] | None = None
    networks: tuple[str, ...] = tuple(NETWORKS)
    compiled: tuple[str, ...] = ("compile",)
    plan: Plan = Plan()
    step_plan: Plan = Plan(sample=0.0, budget=12.0, least=5)
    checked: Layers = BNKIT

    @property
    def suite(self) -> tuple[Shape, ...]:
        """The shapes that are measured."""
        return shapes_of(self.level) if self.shapes is None else self.shapes


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
    with _threads(config.threads):
        checks = _gate(config, progress)
        # glibc adapts its thresholds to the largest block that was freed, as in any process that
        # has trained for a moment; done first, the order of the cases does not matter
        torch.empty(_SCRATCH)
        measurements = _layers(config, progress)
        steps = _networks(config, progress)
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
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gate(config: BenchConfig, progress: Progress) -> tuple[Check, ...]:
    found: list[Check] = []
    cases = [(s, o, m) for s in (*config.suite, TINY) for o in OPERATORS for m in MEANS]
    progress("gate", 0, len(cases), "")
    for i, (shape, operator, mean) in enumerate(cases, 1):
        checks = check_shape(shape, operator, mean, layers=config.checked)
        require(checks)
        found += checks
        progress("gate", i, len(cases), _name(shape))
    return tuple(found)


def _layers(config: BenchConfig, progress: Progress) -> tuple[Measurement, ...]:
    found: list[Measurement] = []
    cases: list[tuple[Shape, MemoryFormat, Operator]] = [
        (s, f, o) for s in config.suite for f in s.formats for o in OPERATORS
    ]
    cases.append((TINY, "contiguous", "bn"))
    progress("layers", 0, len(cases), "")
    for i, (shape, memory_format, operator) in enumerate(cases, 1):
        found += _measure(shape, memory_format, operator, config)
        progress("layers", i, len(cases), f"{operator} {_name(shape)} {memory_format}")
    return tuple(found)


def _measure(
    shape: Shape, memory_format: MemoryFormat, operator: Operator, config: BenchConfig
) -> list[Measurement]:
    """One operator on one input: the compiled layers are shared by its directions."""
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
            timings = interleaved({**works, **copies(inputs.x)}, config.plan)
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


def _networks(config: BenchConfig, progress: Progress) -> tuple[Step, ...]:
    formats: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")
    cases = [(name, f) for name in config.networks for f in formats]
    found = []
    progress("networks", 0, len(cases), "")
    for i, (name, memory_format) in enumerate(cases, 1):
        found.append(measure_steps(name, memory_format, config.step_plan))
        progress("networks", i, len(cases), f"{name} {memory_format}")
    return tuple(found)


def _name(shape: Shape) -> str:
    return "x".join(map(str, shape.sizes))

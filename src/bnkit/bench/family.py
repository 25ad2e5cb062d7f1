"""What each member of the family costs beside the plain layer, on the same input."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache, partial
from statistics import geometric_mean
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import bnkit.nn
from bnkit.bench.machine import describe, load
from bnkit.bench.memory import keep_freed_memory
from bnkit.bench.providers import BNKIT, make_inputs, with_parameters
from bnkit.bench.quiet import LIMIT, Patience
from bnkit.bench.results import Machine, Timing
from bnkit.bench.run import BenchConfig, Progress, silent, torch_threads
from bnkit.bench.shapes import MemoryFormat, Shape
from bnkit.bench.timing import Work, interleaved
from bnkit.core import RenormLimits

SCHEMA = "bnkit.bench.family/1"
PLAIN = "plain"
TARGET = 1.15
HEADS = ("member", "x plain", "target", "verdict", "least", "most", "where most")


@dataclass(frozen=True)
class Member:
    """One member of the family.

    Attributes:
        name: As it stands in the table.
        make: `make(c, d)`: the layer for inputs of d dimensions, in training mode.
        run: `run(layer, x)`: a forward pass, with what this member is given besides.
        wanted: The largest good ratio against the plain layer; None = only told.
    """

    name: str
    make: Callable[[int, int], nn.Module]
    run: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)
    wanted: float | None = TARGET


def _frozen(c: int, dimensions: int, *, affine: bool = False) -> nn.Module:
    layer = BNKIT.plain(c, dimensions)
    bnkit.nn.freeze_(layer, affine=affine)
    return layer


def _frozen_fused(c: int, dimensions: int) -> nn.Module:
    layer = _of("BatchNormAct")(c, dimensions)
    bnkit.nn.freeze_(layer)
    return layer


def _silent(c: int, dimensions: int) -> nn.Module:
    layer = BNKIT.plain(c, dimensions)
    bnkit.nn.set_policy_(layer, update="never")
    return layer


def _whitened(method: str, c: int, dimensions: int) -> nn.Module:
    return _of("WhitenedBatchNorm", method=method, groups=max(c // 16, 1))(c, dimensions)


def _committed(layer: nn.Module, x: Tensor) -> Tensor:
    with bnkit.nn.rollback(layer) as transaction:
        y = layer(x)
        transaction.commit()
    return y


def _of(name: str, **options: Any) -> Callable[[int, int], nn.Module]:
    """A class of bnkit.nn by its name without the dimensions."""
    kinds = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}
    return lambda c, d: getattr(bnkit.nn, f"{name}{kinds[d]}")(c, **options)


@cache
def _mask(shape: tuple[int, ...], keep: float) -> Tensor:
    """True at the beginning of each sample; without positions, for the first samples."""
    n, places = shape[0], math.prod(shape[2:])
    if len(shape) == 2:
        return torch.arange(n) < keep * n
    kept = torch.arange(places) < keep * places
    return kept.reshape(shape[2:]).expand(n, *shape[2:]).contiguous()


def _padded(keep: float) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda layer, x: layer(x, _mask(tuple(x.shape), keep))


@cache
def _weights(samples: int) -> Tensor:
    return torch.linspace(0.5, 1.5, samples)


def _weighted(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, sample_weight=_weights(len(x)))


def _accumulated(layer: nn.Module, x: Tensor) -> Tensor:
    with bnkit.nn.accumulate(layer):
        return layer(x)


def _split(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, domain={"day": len(x) - len(x) // 2, "night": len(x) // 2})


_UNBOUNDED = RenormLimits()
_DOMAINS = ("day", "night")

# A new member is one line.
MEMBERS: tuple[Member, ...] = (
    Member(PLAIN, BNKIT.plain, wanted=None),
    Member("frozen", _frozen),
    Member("frozen, weight and bias too", lambda c, d: _frozen(c, d, affine=True)),
    Member("frozen, with a fused ReLU", _frozen_fused),
    Member("no_update", _silent),
    Member("rollback around one layer", BNKIT.plain, _committed, wanted=None),
    Member("renorm", _of("BatchRenorm", limits=_UNBOUNDED)),
    Member("ghost, 4 samples", _of("GhostBatchNorm", virtual_batch_size=4, remainder="smaller")),
    Member(
        "ghost, strided",
        _of("GhostBatchNorm", virtual_batch_size=4, groups="strided", remainder="smaller"),
    ),
    Member("masked, nothing is padding", _of("MaskedBatchNorm"), _padded(1)),
    Member("masked, a quarter is padding", _of("MaskedBatchNorm"), _padded(0.75)),
    Member("weighted", _of("MaskedBatchNorm"), _weighted, wanted=None),
    Member("BatchNorm(axis=1)", lambda c, d: bnkit.nn.BatchNorm(c)),  # noqa: ARG005
    Member("sync, one process", lambda c, d: bnkit.nn.SyncBatchNorm(c)),  # noqa: ARG005
    Member("accumulate around one layer", BNKIT.plain, _accumulated),
    Member("one domain of two", _of("DomainBatchNorm", domains=_DOMAINS, default="day")),
    Member(
        "two domains in one batch", _of("DomainBatchNorm", domains=_DOMAINS), _split, wanted=None
    ),
    Member("whitened, newton, 16 channels", partial(_whitened, "newton"), wanted=None),
    Member("whitened, zca, 16 channels", partial(_whitened, "zca"), wanted=None),
    Member("differentiable", _of("DifferentiableBatchNorm"), wanted=None),
)


@dataclass(frozen=True)
class Comparison:
    """All members on one input: forward and backward pass in training mode.

    Attributes:
        network: Where the shape comes from.
        sizes: Shape of the input.
        memory_format: "contiguous" or "channels_last".
        timings: The members, the plain layer first.
        others: Share of the processor that other processes took meanwhile, if the system says.
    """

    network: str
    sizes: tuple[int, ...]
    memory_format: str
    timings: tuple[Timing, ...]
    others: float | None

    def ratio(self, member: str) -> float:
        """How many times longer a member takes than the plain layer."""
        seconds = {t.provider: t.seconds for t in self.timings}
        return seconds[member] / seconds[PLAIN]

    @property
    def where(self) -> str:
        """The input in words; "~" marks a comparison that others disturbed."""
        mark = "~" if (self.others or 0) > LIMIT else ""
        return f"{'x'.join(map(str, self.sizes))} {self.memory_format}{mark}"


@dataclass(frozen=True)
class Cost:
    """One row of the table.

    Attributes:
        member: Its name.
        ratio: Geometric mean over all inputs.
        least: Smallest ratio.
        most: Largest ratio.
        where: Input of the largest.
        wanted: The target; None = none.
        passed: Whether the mean reaches it; None without a target.
    """

    member: str
    ratio: float
    least: float
    most: float
    where: str
    wanted: float | None
    passed: bool | None

    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADS`."""
        words = {True: "pass", False: "falls short", None: "-"}
        wanted = "-" if self.wanted is None else f"<= {self.wanted:g}"
        numbers = (f"{self.ratio:.2f}", wanted, words[self.passed])
        return (self.member, *numbers, f"{self.least:.2f}", f"{self.most:.2f}", self.where)


@dataclass(frozen=True)
class FamilyReport:
    """A whole run."""

    date: str
    level: str
    seconds: float
    machine: Machine
    costs: tuple[Cost, ...]
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` writes."""
        return {"schema": SCHEMA, **asdict(self)}


def run_family(
    config: BenchConfig,
    members: tuple[Member, ...] = MEMBERS,
    *,
    progress: Progress = silent,
) -> FamilyReport:
    """Time every member in turn with the plain layer, on every shape and memory format.

    Args:
        config: Shapes, threads, patience, and how long to measure.
        members: Who is measured; the plain layer comes first.
        progress: Told how far it is.

    Returns:
        The report; nothing is written.
    """
    start, before = perf_counter(), load()
    cases: list[tuple[Shape, MemoryFormat]] = [(s, f) for s in config.suite for f in s.formats]
    patience, found = Patience(config.patience), []
    with torch_threads(config.threads):
        if config.keep_memory:
            keep_freed_memory()
        progress("family", 0, len(cases), "")
        for i, (shape, memory_format) in enumerate(cases, 1):
            works = {m.name: _work(m, shape, memory_format) for m in members}
            timings, others = interleaved(works, config.plan, patience)
            found.append(Comparison(shape.network, shape.sizes, memory_format, timings, others))
            progress("family", i, len(cases), found[-1].where)
        machine = describe(before)
    return FamilyReport(
        date=datetime.now(UTC).date().isoformat(),
        level=config.level,
        seconds=round(perf_counter() - start, 1),
        machine=machine,
        costs=tuple(cost(m, found) for m in members if m.name != PLAIN),
        comparisons=tuple(found),
    )


def cost(member: Member, comparisons: list[Comparison]) -> Cost:
    """The row of one member.

    Args:
        member: Which.
        comparisons: At least one.

    Returns:
        Mean, range and verdict.
    """
    ratios = [(c.ratio(member.name), c.where) for c in comparisons]
    most, where = max(ratios)
    mean = geometric_mean(ratio for ratio, _ in ratios)
    passed = None if member.wanted is None else mean <= member.wanted
    return Cost(member.name, mean, min(ratios)[0], most, where, member.wanted, passed)


def _work(member: Member, shape: Shape, memory_format: MemoryFormat) -> Work:
    inputs = make_inputs(shape, memory_format, "bn")
    layer = with_parameters(member.make(shape.sizes[1], len(shape.sizes)))
    wanted = (inputs.x, *(p for p in layer.parameters() if p.requires_grad))
    # the domain that does not run has no gradient
    grad = partial(torch.autograd.grad, allow_unused=True)

    def both() -> None:
        grad(member.run(layer, inputs.x), wanted, inputs.grad_y)

    both()  # nothing is compiled within the time
    return Work(both)

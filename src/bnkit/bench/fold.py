"""How fast a folded network is, beside the unfolded one and what `torch.fx` makes of it."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm

from bnkit.bench.machine import describe, load
from bnkit.bench.memory import keep_freed_memory
from bnkit.bench.networks import MobileNetV2, ResNet18, separate
from bnkit.bench.quiet import LIMIT, Patience
from bnkit.bench.results import Machine, Timing
from bnkit.bench.run import BenchConfig, Progress, silent, torch_threads
from bnkit.bench.timing import Plan, Work, interleaved, measured
from bnkit.fold import fold

SCHEMA = "bnkit.bench.fold/1"
UNFOLDED, FX, FOLDED, KEPT = "unfolded", "torch.fx fuse", "bnkit fold", "bnkit fold, leftovers kept"
HEADS = ("network", "input", "unfolded ms", "fx", "folded", "kept", "left", "relative error")
_PROOF_SIDE = 64
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class PreActivation(nn.Module):
    """A DenseNet (Huang et al. 2017, figure 2): batch norms come before what could take them."""

    def __init__(self, layers: int = 8, growth: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 4, 3, bias=False)
        self.norms1 = nn.ModuleList(nn.BatchNorm2d(64 + growth * i) for i in range(layers))
        wide = 4 * growth
        self.convs1 = nn.ModuleList(
            nn.Conv2d(64 + growth * i, wide, 1, bias=False) for i in range(layers)
        )
        self.norms2 = nn.ModuleList(nn.BatchNorm2d(wide) for _ in range(layers))
        self.convs2 = nn.ModuleList(
            nn.Conv2d(wide, growth, 3, padding=1, bias=False) for _ in range(layers)
        )
        self.head = nn.Linear(64 + growth * layers, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Each layer reads everything before it."""
        x = self.stem(x)
        layers = (self.norms1, self.convs1, self.norms2, self.convs2)
        for norm1, conv1, norm2, conv2 in zip(*layers, strict=True):
            y = conv1(torch.relu(norm1(x)))
            x = torch.cat([x, conv2(torch.relu(norm2(y)))], 1)
        return self.head(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: ResNet18(separate),
    "MobileNetV2": lambda: MobileNetV2(separate),
    "DenseNet": PreActivation,
}


@dataclass(frozen=True)
class Latency:
    """One network on one input: inference in turn.

    Attributes:
        network: Its name.
        sizes: Shape of the input.
        memory_format: "contiguous" or "channels_last".
        timings: Unfolded, torch.fx, folded, and folded with leftover batch norms kept.
        others: Share of the processor that other processes took meanwhile, if the system says.
        folded: Batch norms that went into neighbours.
        left: Batch norms that became a scale and a shift.
        relative_error: Of the folded network in float32, the worst input of the proof.
    """

    network: str
    sizes: tuple[int, ...]
    memory_format: str
    timings: tuple[Timing, ...]
    others: float | None
    folded: int
    left: int
    relative_error: float

    def ratio(self, provider: str) -> float:
        """Time of a provider, divided by that of the unfolded network."""
        seconds = {t.provider: t.seconds for t in self.timings}
        return seconds[provider] / seconds[UNFOLDED]

    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADS`."""
        mark = "~" if (self.others or 0) > LIMIT else ""
        where = f"{'x'.join(map(str, self.sizes))} {self.memory_format}{mark}"
        ratios = (f"{self.ratio(p):.2f}" for p in (FX, FOLDED, KEPT))
        first = f"{1e3 * self.timings[0].seconds:.3g}"
        left = f"{self.left} of {self.left + self.folded}"
        return (self.network, where, first, *ratios, left, f"{self.relative_error:.1e}")


@dataclass(frozen=True)
class FoldReport:
    """A whole run."""

    date: str
    level: str
    seconds: float
    machine: Machine
    latencies: tuple[Latency, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` writes."""
        return {"schema": SCHEMA, **asdict(self)}


@dataclass(frozen=True)
class Race:
    """Inference of a network and of its folded copy, in turn.

    Attributes:
        before: Median seconds of the original.
        after: The same of the folded network.
        ratio: Time of the folded network divided by that of the original, within each round: the
            median.
        low: First quartile of the ratios.
        high: Third quartile.
        rounds: Number of rounds.
        others: Share of the processor that other processes took meanwhile, if the system says.
    """

    before: float
    after: float
    ratio: float
    low: float
    high: float
    rounds: int
    others: float | None

    def __str__(self) -> str:
        return (
            f"{1e3 * self.before:.3g} ms before, {1e3 * self.after:.3g} ms after: {self.ratio:.2f} "
            f"of the time (quartiles of {self.rounds} rounds: {self.low:.2f} to {self.high:.2f})"
        )


def race(model: nn.Module, folded: nn.Module, inputs: Tensor, *, budget: float = 0.5) -> Race:
    """Time a network and its folded copy in turn, and compare them within each round.

    Args:
        model: The original, in eval mode.
        folded: The folded copy.
        inputs: One batch.
        budget: Seconds of measuring.

    Returns:
        Times and their ratio.
    """
    works = {UNFOLDED: _work(model, inputs), FOLDED: _work(folded, inputs)}
    samples, _, others = measured(works, Plan(budget=budget))
    before, after = samples[UNFOLDED], samples[FOLDED]
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    low, ratio, high = quantiles(ratios, n=4, method="inclusive")
    return Race(median(before), median(after), ratio, low, high, len(ratios), others)


def run_fold(
    config: BenchConfig,
    networks: dict[str, Callable[[], nn.Module]] | None = None,
    *,
    progress: Progress = silent,
) -> FoldReport:
    """Time the inference of networks, folded and not, in turn.

    Args:
        config: Threads, patience, and how long to measure; the quick level takes small images.
        networks: By name; None takes `NETWORKS`.
        progress: Told how far it is.

    Returns:
        The report; nothing is written.
    """
    start, before = perf_counter(), load()
    chosen = NETWORKS if networks is None else networks
    side = 64 if config.level == "quick" else 224
    cases = [(n, b, f) for n in chosen for b in (1, 8) for f in _FORMATS]
    patience, found = Patience(config.patience), []
    with torch_threads(config.threads):
        if config.keep_memory:
            keep_freed_memory()
        progress("fold", 0, len(cases), "")
        for i, (name, batch, memory_format) in enumerate(cases, 1):
            x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
            found.append(_latency(name, chosen[name], (x, memory_format), config.plan, patience))
            progress("fold", i, len(cases), f"{name}, {batch} images, {memory_format}")
        machine = describe(before)
    return FoldReport(
        date=datetime.now(UTC).date().isoformat(),
        level=config.level,
        seconds=round(perf_counter() - start, 1),
        machine=machine,
        latencies=tuple(found),
    )


def _latency(
    name: str,
    make: Callable[[], nn.Module],
    given: tuple[Tensor, str],
    plan: Plan,
    patience: Patience,
) -> Latency:
    memory_format: Any = _FORMATS[given[1]]
    x = given[0].to(memory_format=memory_format)
    model: Any = _lived(make())
    model = model.to(memory_format=memory_format)
    example = x[:2, :, :_PROOF_SIDE, :_PROOF_SIDE]  # the proof runs the networks many times
    folding = fold(model, example)
    kept = fold(model, example, leftover="keep").model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch.fx says about itself
        by_fx = fuse(copy.deepcopy(model))
    networks = {UNFOLDED: model, FX: by_fx, FOLDED: folding.model, KEPT: kept}
    works = {label: _work(network, x) for label, network in networks.items()}
    timings, others = interleaved(works, plan, patience)
    error = folding.proof.relative_error
    counts = len(folding.folded), len(folding.kept)
    return Latency(name, tuple(x.shape), given[1], timings, others, *counts, error)


def _work(model: nn.Module, x: Tensor) -> Work:
    run = partial(_inference, model, x)
    run()
    return Work(run)


def _inference(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


def _lived(model: nn.Module) -> nn.Module:
    """Statistics and parameters that are not those of a new layer."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            mean: Any = module.running_mean
            var: Any = module.running_var
            mean.copy_(0.2 * torch.randn(mean.shape, generator=generator))
            var.copy_(0.5 + torch.rand(var.shape, generator=generator))
    return model.eval()

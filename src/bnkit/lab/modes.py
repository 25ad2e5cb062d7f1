"""One trained network, judged in several ways: what a wrong mode or a slow average costs."""

from copy import deepcopy
from dataclasses import dataclass, replace
from math import inf, log
from statistics import fmean, stdev

import torch
from torch import nn

from bnkit.core import TORCH, Moments, RunningStats, merge, population_statistics
from bnkit.lab.data import Part, Split
from bnkit.lab.plain import Record
from bnkit.lab.record import LayerGap, Mode, ModeRow, Text
from bnkit.lab.threads import one_thread
from bnkit.lab.twins import Trained, accuracy, batch_norms, listening, share_right

TRAIN_SIZES = (1, 2, 4, 8, 32)
EMA_WEIGHTS = (0.01, 0.001)
POPULATION_BATCH = 100


@dataclass(frozen=True, slots=True)
class ModeRun(Record):
    """Test accuracy of one trained network under each way of judging, by id."""

    accuracy: dict[str, float]
    layers: tuple[LayerGap, ...]


def judge_modes(trained: Trained, split: Split) -> ModeRun:
    """Judge one trained network on the test part in every way; the network is not changed.

    Args:
        trained: A twin with batch norm, and the moments its layers saw during training.
        split: The data it was trained on.

    Returns:
        Accuracies by id, and how far the running statistics are from the population's.
    """
    model, test = trained.model, split.test
    with one_thread():
        found = {"eval": accuracy(model, test)}
        for size in TRAIN_SIZES:
            found[f"train-{size}"] = left_in_train(model, test, size)
        found["never-updated"] = accuracy(with_statistics(model, {}), test)
        for weight in EMA_WEIGHTS:
            slow = {name: replayed(seen, weight) for name, seen in trained.seen.items()}
            found[f"ema-{weight:g}"] = accuracy(with_statistics(model, slow), test)
        population = population_of(model, split.train)
        exact = {n: RunningStats(m.mean, m.var(correction=1)) for n, m in population.items()}
        found["population"] = accuracy(with_statistics(model, exact), test)
    return ModeRun(found, _gaps(model, population))


def left_in_train(model: nn.Module, part: Part, size: int) -> float:
    """Share of images that a copy left in training mode gets right, `size` at a time.

    The images come in the order of the part, which is mixed; a rest smaller than `size` is left
    out.

    Args:
        model: The network; it is not changed.
        part: Images and labels.
        size: Images per batch.

    Returns:
        The share.
    """
    copy = deepcopy(model).train()
    usable = len(part) // size * size
    with torch.no_grad():
        logits = [copy(images) for images in part.images[:usable].split(size)]
    return share_right(torch.cat(logits), part.labels[:usable])


def with_statistics(model: nn.Module, statistics: dict[str, RunningStats]) -> nn.Module:
    """A copy in eval mode with other running statistics: mean 0, variance 1 where none is given.

    Args:
        model: The network; it is not changed.
        statistics: New running statistics by name of the layer.

    Returns:
        The copy.
    """
    copy = deepcopy(model).eval()
    for name, layer in batch_norms(copy).items():
        layer.reset_running_stats()
        mean, var = layer.running_mean, layer.running_var
        if name in statistics and mean is not None and var is not None:
            mean.copy_(statistics[name].mean)
            var.copy_(statistics[name].var)
    return copy


def replayed(seen: list[Moments], ema_weight: float) -> RunningStats:
    """Running statistics as the same training would have left them with another `ema_weight`.

    In training mode the output does not depend on the running statistics, so that the replay is
    exact.

    Args:
        seen: Moments of every training step, in order.
        ema_weight: Weight of the new batch in the average.

    Returns:
        The statistics after the last step.
    """
    spec = replace(TORCH, ema_weight=ema_weight)
    stats = population_statistics(seen, "ema", spec)
    return RunningStats(stats.mean, stats.var, stats.batches)


def population_of(model: nn.Module, part: Part) -> dict[str, Moments]:
    """Moments of each batch norm's input over a whole part, under the final weights.

    As in Algorithm 2 of Ioffe & Szegedy 2015 the layers below normalize with the statistics of
    the batch.

    Args:
        model: The network; it is not changed.
        part: The images.

    Returns:
        Merged moments by name of the layer.
    """
    copy = deepcopy(model).train()
    with listening(copy) as seen, torch.no_grad():
        for images in part.images.split(POPULATION_BATCH):
            copy(images)
    merged = {}
    for name, parts in seen.items():
        whole = parts[0]
        for one in parts[1:]:
            whole = merge(whole, one)
        merged[name] = whole
    return merged


def summarize(runs: tuple[ModeRun, ...]) -> tuple[Mode, tuple[LayerGap, ...]]:
    """Mean and standard deviation over the seeds; the worst gap of each layer.

    Args:
        runs: The same ways of judging for every seed.

    Returns:
        Rows in the order of judging, and one gap per layer.
    """
    rows = []
    for name in runs[0].accuracy:
        values = [run.accuracy[name] for run in runs]
        sd = stdev(values) if len(values) > 1 else 0.0
        rows.append(ModeRow(name, _title(name), fmean(values), sd, len(values)))
    gaps = tuple(
        LayerGap(
            layers[0].name,
            max(g.distance_mean_z for g in layers),
            _farthest([g.ratio_var for g in layers]),
        )
        for layers in zip(*(run.layers for run in runs), strict=True)
    )
    return Mode(tuple(rows)), gaps


def _gaps(model: nn.Module, population: dict[str, Moments]) -> tuple[LayerGap, ...]:
    gaps = []
    for name, layer in batch_norms(model).items():
        mean, var = layer.running_mean, layer.running_var
        if mean is None or var is None:
            continue
        whole = population[name]
        z = (mean - whole.mean).abs() / whole.var().sqrt()
        ratio = var / whole.var(correction=1)
        gaps.append(LayerGap(name, z.max().item(), _farthest(ratio.tolist())))
    return tuple(gaps)


def _farthest(ratios: list[float]) -> float:
    """The ratio farthest from 1, where half is as far as double."""
    return max(ratios, key=lambda ratio: abs(log(ratio)) if ratio > 0 else inf)


def _title(name: str) -> Text:
    if name.startswith("train-"):
        size = name.removeprefix("train-")
        images = "one image" if size == "1" else f"{size} images"
        return Text(f"left in train mode, {images} at a time", f"停留在训练模式，每次 {size} 张")
    if name.startswith("ema-"):
        weight = name.removeprefix("ema-")
        return Text(f"eval, new batches weigh {weight}", f"eval，新批次权重 {weight}")
    return {
        "eval": Text("eval, as trained (0.1)", "eval，与训练时相同（0.1）"),
        "never-updated": Text("eval, statistics never updated", "eval，统计量从未更新"),
        "population": Text("eval, population statistics", "eval，总体统计量"),
    }[name]

"""Does a corrected variance help small batches? The variance adjustment method, measured."""

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import torch
from torch import Tensor, nn

import bnkit.nn
from bnkit.core import moments
from bnkit.lab.data import Part, digits
from bnkit.lab.plain import Record
from bnkit.lab.progress import Progress, silent
from bnkit.lab.threads import one_thread

SEEDS = 8
# 97.5 % point of Student's t with 7 degrees of freedom
_T = 2.365
_LR, _WIDTH = 0.05, 64

Verdict = Literal["lower", "higher", "no difference seen"]


@dataclass(frozen=True, slots=True)
class VarianceConfig(Record):
    """What is trained.

    Attributes:
        batch: Samples of a training batch.
        epochs: Passes over the training part.
        correction: Subtracted from the count in the variance that normalizes, in the second arm.
    """

    batch: int = 4
    epochs: int = 3
    correction: float = 1


@dataclass(frozen=True, slots=True)
class Scores(Record):
    """Test part under population statistics, a value for each seed.

    Attributes:
        cross_entropy: Mean over the images, in nats.
        error: Share of images that are wrong.
    """

    cross_entropy: tuple[float, ...]
    error: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Effect(Record):
    """Corrected minus plain, over pairs of the same seed.

    Attributes:
        mean: Mean difference.
        low: Lower end of its 95 % interval (Student's t).
        high: Upper end.
        verdict: What the interval says.
    """

    mean: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class VarianceResult(Record):
    """Both arms and what they differ by.

    Attributes:
        config: What was trained.
        plain: Batch norm.
        corrected: The same with the correction.
        cross_entropy: Effect on the cross-entropy.
        error: Effect on the error.
    """

    config: VarianceConfig
    plain: Scores
    corrected: Scores
    cross_entropy: Effect
    error: Effect


def run_variance(
    config: VarianceConfig | None = None, *, progress: Progress = silent
) -> VarianceResult:
    """Train pairs of networks on the digits, alike but for the correction of the variance.

    Both of a pair start from the same weights and see the same batches. They are judged with the
    statistics of the training part, so that the noise of an exponential average does not enter.

    Args:
        config: What to train; None = four samples a batch, Bessel's correction.
        progress: Told how far it is.

    Returns:
        Scores of all seeds, and the paired differences.
    """
    config = config or VarianceConfig()
    arms: list[tuple[float, list[tuple[float, float]]]] = [(0, []), (config.correction, [])]
    with one_thread():
        for seed in range(SEEDS):
            progress("variance", seed, SEEDS)
            for correction, scores in arms:
                scores.append(_trained(config, correction, seed))
    progress("variance", SEEDS, SEEDS)
    plain, other = (Scores(*map(tuple, zip(*scores, strict=True))) for _, scores in arms)
    return VarianceResult(
        config,
        plain,
        other,
        effect(plain.cross_entropy, other.cross_entropy),
        effect(plain.error, other.error),
    )


def effect(plain: tuple[float, ...], other: tuple[float, ...]) -> Effect:
    """The mean of paired differences, with its interval.

    Args:
        plain: One value for each of the seeds.
        other: The same seeds.

    Returns:
        Other minus plain.

    Example:
        >>> effect((1.0,) * 8, (0.9, 0.8) * 4).verdict
        'lower'
    """
    pairs = [b - a for a, b in zip(plain, other, strict=True)]
    mean, half = fmean(pairs), _T * stdev(pairs) / len(pairs) ** 0.5
    low, high = mean - half, mean + half
    verdict: Verdict = "lower" if high < 0 else "higher" if low > 0 else "no difference seen"
    return Effect(mean, low, high, verdict)


def _trained(config: VarianceConfig, correction: float, seed: int) -> tuple[float, float]:
    split = digits(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network(correction)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
    for _ in range(config.epochs):
        order = torch.randperm(len(split.train), generator=generator)
        for index in order.split(config.batch):
            if len(index) == config.batch:
                loss = _loss(model, split.train, index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    _use_population(model, split.train)
    with torch.no_grad():
        z = model(split.test.images)
        loss = nn.functional.cross_entropy(z, split.test.labels)
    return float(loss), float((z.argmax(1) != split.test.labels).float().mean())


def _network(correction: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in (64, _WIDTH):
        layers += [
            nn.Linear(fan_in, _WIDTH, bias=False),
            bnkit.nn.BatchNorm(_WIDTH, correction=correction),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Linear(_WIDTH, 10))


def _loss(model: nn.Module, part: Part, index: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(part.images[index]), part.labels[index])


def _use_population(model: nn.Sequential, part: Part) -> None:
    """Layer after layer, the moments of the whole training part, and eval mode."""
    model.eval()
    with torch.no_grad():
        x = part.images
        for layer in model:
            if isinstance(layer, bnkit.nn.BatchNorm):
                found = moments(x, (0,))
                layer.running_mean.copy_(found.mean)
                layer.running_var.copy_(found.var())
            x = layer(x)

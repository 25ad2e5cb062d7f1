"""Twin convolutional networks on real digits: the same but for batch norm."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bnkit.core import Moments, moments
from bnkit.lab.data import Part, Split
from bnkit.lab.plain import Record
from bnkit.lab.progress import Progress, silent
from bnkit.lab.record import TwinRun
from bnkit.lab.threads import one_thread
from bnkit.nn import BatchNorm2d

ArmId = Literal["bn", "plain"]

ARM_IDS: tuple[ArmId, ...] = ("bn", "plain")
CLASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinConfig(Record):
    """How the twins are built and trained.

    Attributes:
        seeds: Seeds of the paired runs: the same first weights and the same batches in both arms.
        sweep_seed: Seed of the runs that choose the learning rate; not one of `seeds`.
        lrs: Learning rates to choose from, for each arm, by validation accuracy.
        batch: Images per step.
        steps: Training steps; the learning rate falls linearly to 0 over them.
        record_every: Steps between two records.
        channels: Output channels of the four convolutions.
        split_seed: Seed of the split of the digits.
    """

    seeds: tuple[int, ...] = (1, 2, 3)
    sweep_seed: int = 1000
    lrs: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    batch: int = 32
    steps: int = 300
    record_every: int = 10
    channels: tuple[int, ...] = (16, 16, 32, 32)
    split_seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained twin, its record, and the batch statistics its layers saw.

    Attributes:
        model: The network, in eval mode.
        run: What was recorded.
        seen: Moments of the inputs of each batch norm layer, by name, one per step.
    """

    model: nn.Sequential
    run: TwinRun
    seen: dict[str, list[Moments]]


def build(channels: tuple[int, ...], *, batch_norm: bool, seed: int) -> nn.Sequential:
    """Four 3x3 convolutions with relu, pooling after the second, an average, a linear layer.

    The weights are He's (2015) and do not depend on `batch_norm`: twins start from the same ones.
    Batch norm replaces the bias of the convolution before it.

    Args:
        channels: Output channels of each convolution.
        batch_norm: Put a batch norm between each convolution and its relu.
        seed: Seed of the weights.

    Returns:
        The network, in training mode; its convolutional part is the submodule `features`.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False)):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm)
        layers.append(_started(convolution, generator))
        layers += [BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [nn.ReLU()]
        if number == len(channels) // 2 - 1:
            layers.append(nn.MaxPool2d(2))
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*layers))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("head", _started(nn.Linear(channels[-1], CLASSES), generator))
    return model


def _started(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def batch_norms(model: nn.Module) -> dict[str, BatchNorm2d]:
    """The batch norm layers of a model by qualified name, in order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, BatchNorm2d)}


def train(
    config: TwinConfig,
    split: Split,
    arm: ArmId,
    *,
    seed: int,
    lr: float,
    listen: bool = True,
    progress: Progress = silent,
) -> Trained:
    """Train one twin by gradient descent with a learning rate that falls linearly to 0.

    Args:
        config: How to train.
        split: The data.
        arm: With ("bn") or without ("plain") batch norm.
        seed: Seed of the weights and of the order of the images.
        lr: The first learning rate.
        listen: Collect the moments that the batch norm layers see.
        progress: Told how far the work is, in the stage "twins", in steps.

    Returns:
        The network in eval mode with its record.
    """
    model = build(config.channels, batch_norm=arm == "bn", seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    batches = _batches(split.train, config.batch, seed)
    losses: list[float] = []
    curve: list[tuple[int, float | None, float]] = []
    with one_thread(), listening(model if listen else nn.Module()) as seen:
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / config.steps)
            images, labels = next(batches)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if (step + 1) % config.record_every == 0:
                mean, losses = fmean(losses), []
                reached = accuracy(model, split.val)
                curve.append((step + 1, mean if isfinite(mean) else None, reached))
                progress("twins", step + 1, config.steps, f"{arm} · {seed} · {reached:.1%}")
        result = accuracy(model, split.test)
    steps, train_loss, val_accuracy = (tuple(column) for column in zip(*curve, strict=True))
    run = TwinRun(seed, lr, steps, train_loss, val_accuracy, result)
    return Trained(model.eval(), run, seen)


def accuracy(model: nn.Module, part: Part) -> float:
    """Share of the images that the model in eval mode gets right; its mode is put back.

    Args:
        model: The network.
        part: Images and labels.

    Returns:
        The share; an image whose outputs are not finite counts as wrong.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return share_right(model(part.images), part.labels)
    finally:
        model.train(training)


def share_right(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """Share of rows whose largest entry is that of the label; a row with NaN is wrong."""
    right = (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)
    return right.double().mean().item()


def _batches(part: Part, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of equal size; the images are shuffled anew for each pass."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(part), generator=generator)
        for rows in order[: len(part) // size * size].split(size):
            yield part.images[rows], part.labels[rows]


@contextmanager
def listening(model: nn.Module) -> Iterator[dict[str, list[Moments]]]:
    """Collect the moments of what each batch norm receives in training mode.

    Args:
        model: The network; its hooks are removed at the end, whatever happens.

    Yields:
        Moments by name of the layer, one per forward pass; it grows while the model runs.
    """
    seen: dict[str, list[Moments]] = {}

    def listen(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training:
            seen[name].append(moments(inputs[0].detach(), (0, 2, 3)))

    handles = []
    try:
        for name, layer in batch_norms(model).items():
            seen[name] = []
            handles.append(layer.register_forward_pre_hook(partial(listen, name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()

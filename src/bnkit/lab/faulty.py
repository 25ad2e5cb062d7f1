"""A small network on the digits, trained well or badly: what the fault suite examines."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bnkit.lab.data import Split

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
Layer = nn.BatchNorm2d


def network(
    *, momentum: float | None = 0.1, eps: float = 1e-5, dropout: float = 0.0, tracks: bool = True
) -> nn.Sequential:
    """Three 3x3 convolutions of 16, 32 and 64 channels with batch norm and relu; a linear layer.

    Args:
        momentum: Torch's weight of the new batch.
        eps: Added to the variances.
        dropout: Before each batch norm but the first.
        tracks: Keep running statistics.

    Returns:
        The network, in training mode, from torch's generator.
    """
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(((1, 16), (16, 32), (32, 64))):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        if dropout and number:
            layers.append(nn.Dropout(dropout))
        layers.append(Layer(outputs, eps, momentum, track_running_stats=tracks))
        layers.append(nn.ReLU())
        if number == 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def layers_of(model: nn.Module) -> list[Layer]:
    """Its batch norms, in order."""
    return [m for m in model.modules() if isinstance(m, Layer)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a patient is trained.

    Attributes:
        seed: Of weights and batches.
        steps: Optimizer steps.
        batch: Rows of a batch.
        lr: Learning rate of SGD with momentum 0.9.
        cosine: Let the learning rate fall to 0.
        by_class: Draw the batches from the rows sorted by label, in order.
    """

    seed: int = 0
    steps: int = 250
    batch: int = 64
    lr: float = 0.05
    cosine: bool = True
    by_class: bool = False


def train(model: nn.Module, split: Split, how: Training, *, in_eval: bool = False) -> nn.Module:
    """Train a network in place.

    Args:
        model: The network.
        split: The digits.
        how: The recipe.
        in_eval: Train in eval mode: the fault of BN308.

    Returns:
        The network, in eval mode.
    """
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], how.lr, momentum=0.9
    )
    model.train(not in_eval)
    for step, (x, y) in enumerate(drawn(split, how)):
        if how.cosine:
            share = torch.tensor(step / how.steps * torch.pi)
            optimizer.param_groups[0]["lr"] = how.lr * float(1 + share.cos()) / 2
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def drawn(split: Split, how: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a training, one for each step.

    Args:
        split: The digits.
        how: The recipe.

    Yields:
        Images and labels.
    """
    generator = torch.Generator().manual_seed(how.seed)
    order = split.train.labels.argsort(stable=True) if how.by_class else None
    begin = len(split.train)
    mixed = torch.arange(begin)
    for _ in range(how.steps):
        if begin + how.batch > len(split.train):
            begin = 0
            mixed = torch.randperm(len(split.train), generator=generator)
        rows = (mixed if order is None else order)[begin : begin + how.batch]
        begin += how.batch
        yield split.train.images[rows], split.train.labels[rows]


def sorted_rows(split: Split) -> tuple[Tensor, Tensor]:
    """The training images in order of their labels."""
    order = split.train.labels.argsort(stable=True)
    return split.train.images[order], split.train.labels[order]


def mixed_rows(split: Split, seed: int = 7) -> tuple[Tensor, Tensor]:
    """The training images in random order."""
    order = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(seed))
    return split.train.images[order], split.train.labels[order]


def changed(model: nn.Module, change: Callable[[list[Layer]], object]) -> nn.Module:
    """A copy with something done to its batch norms.

    Args:
        model: The network; it is not changed.
        change: Works on the list of batch norms of the copy, without gradients.

    Returns:
        The copy.
    """
    copy = deepcopy(model)
    with torch.no_grad():
        change(layers_of(copy))
    return copy


def share_right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy as the model is, in one batch."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())

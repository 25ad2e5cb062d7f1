"""What whitening brings and costs beside plain batch norm: digits, trained in few steps.

    python benchmarks/whitening.py

Trains a network of two hidden layers for three epochs in batches of 100, for eight seeds and the
best of three learning rates of each kind (by training loss). Prints the means over the seeds, then
the time of one layer by its groups, as a multiple of the plain one.
"""

# ruff: noqa: T201, TID253  a script, not a module of the package

import time
from collections.abc import Callable
from functools import partial
from statistics import fmean, median

import torch
from torch import nn

import bnkit
from bnkit.lab.data import digits

SEEDS, EPOCHS, BATCH, WIDTH = range(8), 3, 100, 64
RATES = (0.1, 0.3, 1.0)
Norm = Callable[[int], nn.Module]
_whitened = bnkit.nn.WhitenedBatchNorm1d
NORMS: dict[str, Norm] = {
    "plain": bnkit.nn.BatchNorm1d,
    "newton, groups of 16": partial(_whitened, groups=WIDTH // 16),
    "newton, one group": _whitened,
    "zca, groups of 16": partial(_whitened, groups=WIDTH // 16, method="zca"),
    "zca, one group": partial(_whitened, method="zca"),
}


def trained(norm: Norm, seed: int, lr: float) -> tuple[float, float, float]:
    """Training loss, test error, and seconds."""
    split = digits(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in (64, WIDTH):
        layers += [nn.Linear(fan_in, WIDTH, bias=False), norm(WIDTH), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr)
    images, labels = split.train.images, split.train.labels
    start = time.perf_counter()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    spent = time.perf_counter() - start
    with torch.no_grad(), bnkit.nn.no_update(model):
        final = nn.functional.cross_entropy(model(images), labels)
        wrong = model.eval()(split.test.images).argmax(1) != split.test.labels
    return float(final), float(wrong.float().mean()), spent


def seconds(layer: nn.Module) -> float:
    """Forward and backward pass of one layer, median of seven."""
    x = torch.randn(32, 64, 28, 28, requires_grad=True)
    grad, found = torch.randn_like(x), []
    for _ in range(9):
        start = time.perf_counter()
        torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)
        found.append(time.perf_counter() - start)
    return median(found[2:])


def main() -> None:
    """Print one line for each kind of layer, and one for each width of a group."""
    torch.set_num_threads(1)
    print("layer | rate | training loss | test error % | seconds")
    for name, norm in NORMS.items():
        rows = []
        for lr in RATES:
            found = zip(*(trained(norm, seed, lr) for seed in SEEDS), strict=True)
            rows.append((lr, *map(fmean, found)))
        lr, loss, error, spent = min(rows, key=lambda row: row[1])
        print(f"{name} | {lr} | {loss:.3f} | {100 * error:.1f} | {spent:.2f}")
    plain = seconds(bnkit.nn.BatchNorm2d(64))
    print("channels in a group | newton | zca")
    for width in (1, 4, 16, 64):
        layer = partial(bnkit.nn.WhitenedBatchNorm2d, 64, groups=64 // width)
        ratios = [seconds(layer(method=method)) / plain for method in ("newton", "zca")]
        print(f"{width} | " + " | ".join(f"{ratio:.1f}" for ratio in ratios))


if __name__ == "__main__":
    main()

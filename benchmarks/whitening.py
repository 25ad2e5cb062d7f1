"""What whitening brings and costs beside plain batch norm: digits, trained in few steps.

    python benchmarks/whitening.py

Trains a network of two hidden layers for three epochs in batches of 100, for eight seeds and the
better of three learning rates of each kind (by training loss). Prints the means over the seeds.
"""

# ruff: noqa: T201, TID253  a script, not a module of the package

import time
from collections.abc import Callable
from functools import partial
from statistics import fmean

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
    seconds = time.perf_counter() - start
    with torch.no_grad(), bnkit.nn.no_update(model):
        final = nn.functional.cross_entropy(model(images), labels)
        wrong = model.eval()(split.test.images).argmax(1) != split.test.labels
    return float(final), float(wrong.float().mean()), seconds


def main() -> None:
    """Print one line for each kind of layer."""
    torch.set_num_threads(1)
    print("layer | rate | training loss | test error % | seconds")
    for name, norm in NORMS.items():
        rows = []
        for lr in RATES:
            found = zip(*(trained(norm, seed, lr) for seed in SEEDS), strict=True)
            rows.append((lr, *map(fmean, found)))
        lr, loss, error, seconds = min(rows, key=lambda row: row[1])
        print(f"{name} | {lr} | {loss:.3f} | {100 * error:.1f} | {seconds:.2f}")


if __name__ == "__main__":
    main()

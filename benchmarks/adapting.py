"""What test-time adaptation gains and ruins: error on shifted and on sorted digits.

    python benchmarks/adapting.py

Trains a convolutional network on digits for each of five seeds, then predicts the test part in
batches of 32, iid and sorted by class, under four corruptions. Prints the mean error.
"""

# ruff: noqa: T201, TID253  a script, not a module of the package

import copy
from collections.abc import Callable, Iterator
from functools import partial
from statistics import fmean

import torch
from torch import Tensor, nn

import bnkit
from bnkit.lab.data import Part, Split, digits

SEEDS = range(5)
BATCH = 32
SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "contrast x 0.3": lambda x: 0.3 * x,
    "gain x 8": lambda x: 8 * x,
    "noise 0.8": lambda x: (
        x + 0.8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ),
}


def network(seed: int, split: Split) -> nn.Sequential:
    """A trained network with three batch norms, in eval mode."""
    torch.manual_seed(seed)
    norm = bnkit.nn
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), norm.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1, bias=False), norm.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 64, bias=False), norm.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(8):
        for index in torch.randperm(len(split.train)).split(50):
            z = model(split.train.images[index])
            loss = nn.functional.cross_entropy(z, split.train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def stream(part: Part, shift: str, *, ordered: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The test part in batches, iid or sorted by class."""
    shuffled = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
    order = part.labels.argsort(stable=True) if ordered else shuffled
    images = SHIFTS[shift](part.images)
    return ((images[i], part.labels[i]) for i in order.split(BATCH))


Batches = Iterator[tuple[Tensor, Tensor]]


def _wrong(predict: Callable[[Tensor], Tensor], batches: Batches) -> float:
    found = [predict(x).argmax(1) != y for x, y in batches]
    return float(torch.cat(found).float().mean())


def source(model: nn.Module, batches: Batches) -> float:
    """Error with the running statistics."""
    return _wrong(model, batches)


def adapted(
    model: nn.Module, batches: Batches, statistics: str, *, guard: bool = False, **options: bool
) -> float:
    """Error with adapted statistics."""
    watch = bnkit.nn.CollapseGuard() if guard else None
    with torch.no_grad(), bnkit.nn.adapted(model, statistics, guard=watch, **options):
        return _wrong(model, batches)


def tent(model: nn.Module, batches: Batches, *, guard: bool = False, lr: float = 1e-2) -> float:
    """Error of TENT."""
    watch = bnkit.nn.CollapseGuard() if guard else None
    with bnkit.nn.tent(model, guard=watch) as t:
        optimizer = torch.optim.Adam(t.parameters, lr=lr)
        return _wrong(partial(t.step, optimizer=optimizer), batches)


WAYS: dict[str, Callable[[nn.Module, Batches], float]] = {
    "running": source,
    "mix": partial(adapted, statistics="mix"),
    "mix, no shift term": partial(adapted, statistics="mix", mean_shift=False),
    "batch": partial(adapted, statistics="batch"),
    "batch, guarded": partial(adapted, statistics="batch", guard=True),
    "ema": partial(adapted, statistics="ema"),
    "TENT": tent,
    "TENT, guarded": partial(tent, guard=True),
}


def main() -> None:
    """Print one line for each stream."""
    torch.set_num_threads(1)
    trained = [(network(seed, split), split) for seed in SEEDS if (split := digits(seed))]
    print("shift | order | " + " | ".join(WAYS))
    for shift in SHIFTS:
        for ordered in (False, True):
            row = [
                fmean(
                    way(copy.deepcopy(m), stream(s.test, shift, ordered=ordered))
                    for m, s in trained
                )
                for way in WAYS.values()
            ]
            print(
                f"{shift} | {'sorted' if ordered else 'iid'} | "
                + " | ".join(f"{100 * e:.1f}" for e in row)
            )


if __name__ == "__main__":
    main()

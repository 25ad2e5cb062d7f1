"""What the doctor costs on a ResNet-50 of transformers, built from its configuration.

    python benchmarks/doctor.py [THREADS]

Seconds of the rules on the state_dict, and the time of the probe and of a whole diagnosis in
forward passes over the same batches (8 of 8 images of 96x96, medians of interleaved rounds).
"""

# ruff: noqa: T201, TID253  a script, not a module of the package

import statistics
import sys
import time
from collections.abc import Callable

import torch
import transformers

import bnkit
from bnkit.doctor.batches import read_batches
from bnkit.doctor.find import read_module
from bnkit.doctor.probe import probe

ROUNDS = 5


def seconds(call: Callable) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print three lines."""
    torch.manual_seed(0)
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig()).eval()
    x = torch.randn(64, 3, 96, 96)
    reading = {"limit": 8, "batch_size": 8, "forward": None, "model": model}
    batches, records = read_batches(x, **reading), read_module(model)

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(*batch.args)

    ways = {
        "forward": forward,
        "probe": lambda: probe(model, records, batches),
        "diagnosis": lambda: bnkit.diagnose(model, x, batch_size=8, batches=8),
    }
    rules = min(seconds(lambda: bnkit.diagnose(model.state_dict())) for _ in range(ROUNDS))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, call in ways.items():
            times[name].append(seconds(call))
    found = {name: statistics.median(t[1:]) for name, t in times.items()}
    print(f"rules on the state_dict, {len(records)} layers: {rules:.3f} s")
    for name in ("probe", "diagnosis"):
        print(f"{name}: {found[name] / found['forward']:.2f} forward passes")


if __name__ == "__main__":
    main()

"""How fast one core reads rows of channels, by the distance of the rows it reads side by side.

    python benchmarks/streams.py

Prints GB/s of the moments of `(rows, channels)` float32 with neighbouring rows, with rows as far
apart as the kernels take them, and of a plain sum.
"""

# ruff: noqa: T201, TID253  a script, not a module of the package

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from bnkit.ops.kernels import row_moments
from bnkit.ops.kernels.columns import room
from bnkit.ops.kernels.compiled import compiled, specialized

SHAPES = [(16384, 128), (12544, 512), (50176, 256), (100352, 64)]
ROUNDS = 11


@compiled
def neighbours(rows: int, width: int, together: int) -> int:  # noqa: ARG001  as `run_of`
    """Rows side by side follow one another."""
    return 1


def moments_with(name: str, run_of: Callable) -> Callable:
    """The moments of rows whose distance another function chooses."""
    block = specialized(row_moments._block_deviations.py_func, name=name, run_of=run_of)
    return specialized(row_moments.rows_moments.py_func, name=name, _block_deviations=block)


def rates(shape: tuple[int, int], ways: dict[str, Callable]) -> dict[str, float]:
    """GB/s of every way, medians of interleaved rounds."""
    rows, width = shape
    x = torch.randn(shape)
    flat, like = x.numpy().ravel(), np.empty(0, np.float32)
    center, sums = room(1, width, like).ravel(), room(2, width, np.empty(0)).ravel()
    found = np.empty((2, width))
    calls = {k: lambda f=f: f(flat, rows, found, center, sums) for k, f in ways.items()}
    calls["sum"] = x.sum
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {k: x.nbytes / statistics.median(t[1:]) / 1e9 for k, t in times.items()}


def main() -> None:
    """Print one line a shape."""
    torch.set_num_threads(1)
    far = moments_with("far", row_moments.run_of)
    ways = {"neighbours": moments_with("neighbours", neighbours), "far apart": far}
    for shape in SHAPES:
        found = rates(shape, ways)
        print(shape, " ".join(f"{name} {rate:.0f} GB/s" for name, rate in found.items()))


if __name__ == "__main__":
    main()

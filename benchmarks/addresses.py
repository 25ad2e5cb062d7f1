"""What the distance of two arrays in memory does to a loop that reads one and writes the other.

    python benchmarks/addresses.py

For (16, 256, 14, 14) in float32 with one thread: microseconds (the best of forty) of the loops
over planes and over rows, the output beginning so many bytes (modulo 4096) behind the input.
"""

# ruff: noqa: T201  a script, not a module of the package

import time
from collections.abc import Callable

import numpy as np

from bnkit.ops.kernels.planes import planes_forward
from bnkit.ops.kernels.rows import rows_forward

N, C, S = 16, 256, 196
NOTHING, SLOPE = np.empty(0, np.float32), np.float32(0)


def best(call: Callable) -> float:
    """Microseconds of the fastest of forty calls."""
    times = []
    for _ in range(41):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:]) * 1e6


def main() -> None:
    """Print a line for each distance."""
    planes, rows = planes_forward("none", residual=False), rows_forward("none", residual=False)
    size = N * C * S
    memory = np.random.default_rng(0).standard_normal(2 * size + 100_000).astype(np.float32)
    start = -memory.ctypes.data % 4096 // 4
    affine = np.ones((3, C), np.float32)
    x = memory[start : start + size]
    for distance in (0, 64, 128, 192, 256, 512, 1024, 2048):
        first = start + size + distance // 4
        y = memory[first : first + size]
        by_planes = best(lambda y=y: planes(x, NOTHING, y, (N, C, S), (0, C), affine, SLOPE))
        by_rows = best(lambda y=y: rows(x, NOTHING, y, N * S, C, affine, SLOPE))
        print(f"{distance:5} bytes: planes {by_planes:6.0f}, rows {by_rows:6.0f}")


if __name__ == "__main__":
    main()

"""How fast files of tensors are read, all checksums compared.

Run `python benchmarks/formats.py [folder]`. It writes a TensorFlow bundle of 1 GB and one of many
small tensors into a temporary folder (of `folder`, if given), and prints one line for each number
in docs/formats.md. About half a minute.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the small writer of bundles is the tests'

from bnkit.formats import read
from bnkit.formats.crc32c import crc32c
from tests.formats.bundle_writer import write_bundle

GIGABYTE = 1_000_000_000
ROUNDS = 5


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        shape = (250, 250, 1000)  # of float32: 0.25 GB
        random = np.random.default_rng(0)
        write_bundle(large, {f"layer{n}/kernel": _noise(random, shape) for n in range(4)})
        names = [f"net/layer{n}/bn/{part}" for n in range(1000) for part in ("gamma", "beta")]
        write_bundle(small, {name: _noise(random, (256,)) for name in names})

        report("1 GB of CRC-32C alone, in memory", _checksum())
        report("1 GB bundle: open, list", best(lambda: read(large).names))
        report(
            "1 GB bundle: open, read all, all CRC-32C compared", best(lambda: read(large).verify())
        )
        report("2000 tensors of 1 kB: open, list", best(lambda: read(small).names))
        report("2000 tensors of 1 kB: read all, all CRC-32C", best(lambda: read(small).verify()))


def report(what: str, seconds: tuple[float, float]) -> None:
    """Print one line.

    Args:
        what: Was measured.
        seconds: Median and largest of the rounds.
    """
    middle, worst = seconds
    print(f"{what}: {middle:.3f} s (slowest of {ROUNDS}: {worst:.3f} s)")  # noqa: T201


def best(action: Callable[[], object]) -> tuple[float, float]:
    """Time an action; the file is in the cache of the operating system after the first round.

    Args:
        action: To be timed.

    Returns:
        Median and largest of the rounds, in seconds.
    """
    action()
    times = []
    for _ in range(ROUNDS):
        begun = perf_counter()
        action()
        times.append(perf_counter() - begun)
    return statistics.median(times), max(times)


def _checksum() -> tuple[float, float]:
    data = np.random.default_rng(1).bytes(GIGABYTE // 4)
    middle, worst = best(lambda: crc32c(data))
    return 4 * middle, 4 * worst


def _noise(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.standard_normal(shape, dtype=np.float32)


if __name__ == "__main__":
    main()

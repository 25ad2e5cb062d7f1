"""How much of the processor other processes take, and waiting until it is little.

A thread that waits for another one at a barrier waits for as long as a stranger holds its core:
one busy process makes a kernel of 40 microseconds take 12 milliseconds, and whoever does not wait
at barriers looks like a winner.
"""

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

LIMIT = 0.1  # of all cores; above it a measurement is called disturbed
_GLANCE = 0.3  # seconds of watching before measuring again
_TICKS = Path("/proc/stat")


@dataclass
class Watch:
    """Counts the processor time of others since it was made."""

    start: tuple[float, float, float] = field(default_factory=lambda: _clocks())

    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.start[0]

    def others(self) -> float | None:
        """Their share of the time of all cores; None where the system does not say."""
        wall, busy, own = (b - a for a, b in zip(self.start, _clocks(), strict=True))
        if math.isnan(busy):
            return None
        cores = os.cpu_count() or 1
        return round(min(1.0, max(0.0, (busy - own) / max(wall * cores, 1e-9))), 3)


@dataclass
class Patience:
    """Seconds that may still be spent on waiting and on measuring again."""

    left: float = 0.0

    def refuses(self, others: float | None, spent: float) -> bool:
        """Whether to measure again; waits first until others are quiet.

        Args:
            others: Their share during what was measured.
            spent: Seconds that measuring it took.

        Returns:
            True where others disturbed and patience is left.
        """
        if others is None or others <= LIMIT or self.left <= 0:
            return False
        start, self.left = time.monotonic(), self.left - spent
        while time.monotonic() < start + self.left:
            watch = Watch()
            time.sleep(_GLANCE)
            if (watch.others() or 0) <= LIMIT / 2:
                break
        self.left -= time.monotonic() - start
        return True


def _clocks() -> tuple[float, float, float]:
    """Seconds: on the wall, of all cores busy or stolen (NaN = unknown), of this process."""
    busy = math.nan
    try:
        words = _TICKS.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _wait, hard, soft, stolen = (float(w) for w in words)
        busy = (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):  # not Linux
        pass
    return time.monotonic(), busy, time.process_time()

"""Threads for the CPU loops: as many as torch uses, safe for several callers and after a fork.

The loops run without the GIL, so Python threads are enough. Numba's own threading layers are
not used: its default one aborts when two threads call it, and the OpenMP one aborts a forked
child. A pool belongs to one process; a forked child makes its own.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Lock

import torch

# Below this many values a hand-over (about 30 microseconds) costs more than it saves.
SERIAL = 1 << 16

_pool: ThreadPoolExecutor | None = None
_lock = Lock()


def workers(values: int) -> int:
    """How many threads to use for an array of that many values."""
    return 1 if values < SERIAL else torch.get_num_threads()


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """`range(count)` as at most `parts` nearly equal ranges, none empty."""
    parts = max(1, min(parts, count))
    edges = [count * i // parts for i in range(parts + 1)]
    return list(pairwise(edges))


def run(task: Callable[[int], None], parts: Sequence) -> None:
    """Call `task(i)` for every part, the first in this thread, the others in the pool."""
    if len(parts) == 1:
        task(0)
        return
    waiting = [_shared_pool().submit(task, i) for i in range(1, len(parts))]
    try:
        task(0)
    finally:
        for future in waiting:
            future.result()


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="bnkit")
        return _pool


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, Lock()


os.register_at_fork(after_in_child=_forget_pool)

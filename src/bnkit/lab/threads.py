"""How torch runs an experiment: one thread, and freed memory kept at hand."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SCRATCH = 7_500_000  # float32 values: 30 MB, just under the largest threshold of glibc


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside, and as many as before afterwards.

    Sums are then always added in the same order; on networks this small one thread is the
    fastest as well.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Make the C library keep freed blocks below 30 MB instead of returning them at once.

    glibc adapts its thresholds to the largest mapped block that was freed. Without this, each
    temporary of a megabyte costs a system call and fresh pages, a third of the whole time.
    Nothing is touched, so that it costs no memory; other C libraries ignore it.
    """
    torch.empty(SCRATCH)

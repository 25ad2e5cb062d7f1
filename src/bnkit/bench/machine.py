"""The machine and the versions behind the numbers."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import llvmlite
import numba
import numpy
import torch

from bnkit.bench.results import Machine


def load() -> float | None:
    """Processes that wanted to run in the last minute, on average; None where nobody counts."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe(load_before: float | None) -> Machine:
    """This machine, as far as it says.

    Args:
        load_before: The load when the run began.

    Returns:
        The description.
    """
    packages = {"torch": torch, "numba": numba, "llvmlite": llvmlite, "numpy": numpy}
    versions = {"python": platform.python_version(), "bnkit": version("bnkit")}
    versions |= {name: package.__version__ for name, package in packages.items()}
    vectors = torch.backends.cpu.get_cpu_capability()
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=_memory(),
        system=f"{platform.system()} {platform.machine()}, {vectors}",
        load_before=load_before,
        load_after=load(),
        versions=versions,
        git=_git(),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{k} {found[k]}" for k in ("cpu family", "model", "cache size") if k in found]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _git() -> str | None:
    """The commit of the source tree, with "+" if it has changes; None where there is none."""
    folder = Path(__file__).parents[1]
    answers = []
    for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", ".")):
        try:
            done = subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        answers.append(done.stdout.strip())
    commit, changes = answers
    return f"{commit}+" if changes else commit

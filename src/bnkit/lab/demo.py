"""The first run: mofan, the twins, the modes, the doctor and the way out, in one result."""

import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnkit import __version__
from bnkit.lab.ablation import Profile
from bnkit.lab.findings import (
    doctor_finding,
    leaving_finding,
    mode_finding,
    mofan_finding,
    twins_finding,
)
from bnkit.lab.leaving import Stopwatch, run_leaving
from bnkit.lab.mofan import run_mofan
from bnkit.lab.network import MofanConfig
from bnkit.lab.progress import Progress, silent
from bnkit.lab.record import DEMO_SCHEMA, MOFAN_SCHEMA, Finding, Results
from bnkit.lab.repairs import run_repairs
from bnkit.lab.store import Parts
from bnkit.lab.study import run_twins
from bnkit.lab.twins import TwinConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What the demo runs.

    Attributes:
        mofan: The tutorial's experiment.
        twins: The convolutional twins.
        profile: Size of the ablation.
    """

    mofan: MofanConfig = field(default_factory=MofanConfig)
    twins: TwinConfig = field(default_factory=TwinConfig)
    profile: Profile = "quick"

    @staticmethod
    def from_seed(seed: int) -> "DemoConfig":
        """The demo whose random numbers start from `seed`; the data and its split stay."""
        twins = TwinConfig(seeds=(seed, seed + 1, seed + 2), sweep_seed=seed + 1000)
        return DemoConfig(mofan=MofanConfig(seed=seed), twins=twins)


def run_demo(
    config: DemoConfig | None = None,
    *,
    stopwatch: Stopwatch | None = None,
    folder: Path | None = None,
    parts: Parts | None = None,
    progress: Progress = silent,
) -> Results:
    """Run everything the first page shows.

    Args:
        config: What to run; None takes the defaults.
        stopwatch: Times the folded network, as `bnkit.bench.fold.race`; None measures no times.
        folder: Where the ONNX files go; None writes none.
        parts: Where finished parts are kept; None keeps nothing.
        progress: Told how far the work is, in the stages "mofan", "ablation", "twins",
            "doctor" and "leaving".

    Returns:
        The results; the same for the same configuration but for `created`, `seconds` and the
        times of the folded network.
    """
    config = DemoConfig() if config is None else config
    parts = Parts() if parts is None else parts
    mofan = run_mofan(config.mofan, profile=config.profile, parts=parts, progress=progress)
    twins = run_twins(config.twins, parts=parts, progress=progress)
    lr = next(arm.lr for arm in twins.arms if arm.id == "bn")
    repairs = run_repairs(config.twins, lr, parts=parts, progress=progress)
    leaving = run_leaving(
        config.twins, lr, stopwatch=stopwatch, folder=folder, parts=parts, progress=progress
    )
    findings = (
        mofan_finding(mofan),
        twins_finding(twins),
        mode_finding(twins),
        doctor_finding(repairs),
        leaving_finding(leaving),
    )
    measured = {"mofan": mofan, "twins": twins, "repairs": repairs, "leaving": leaving}
    return _results(DEMO_SCHEMA, findings, measured, parts.seconds)


def run_mofan_alone(
    config: MofanConfig | None = None,
    *,
    profile: Profile = "quick",
    parts: Parts | None = None,
    progress: Progress = silent,
) -> Results:
    """Run the tutorial's experiment by itself.

    Args:
        config: The numbers of the tutorial; None takes its own.
        profile: Size of the ablation.
        parts: Where finished parts are kept; None keeps nothing.
        progress: Told how far the work is, in the stages "mofan" and "ablation".

    Returns:
        The results, without twins.
    """
    parts = Parts() if parts is None else parts
    mofan = run_mofan(config, profile=profile, parts=parts, progress=progress)
    return _results(MOFAN_SCHEMA, (mofan_finding(mofan),), {"mofan": mofan}, parts.seconds)


def _results(
    schema: str,
    findings: tuple[Finding, ...],
    measured: dict[str, Any],
    seconds: float,
) -> Results:
    return Results(
        schema=schema,
        bnkit=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(seconds, 1),
        environment={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "platform": platform.platform(),
            "threads": 1,
        },
        findings=findings,
        **measured,
    )

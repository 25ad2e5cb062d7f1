"""Is it batch norm, or only the bad initialization? Initialization x learning rate x seeds."""

from math import isfinite
from statistics import median
from typing import Literal

import torch

from bnkit.lab.data import parabola
from bnkit.lab.network import Activation, Init, MofanConfig, Networks, draw_weights
from bnkit.lab.plain import rebuild
from bnkit.lab.progress import Progress, silent
from bnkit.lab.record import Ablation, AblationCell, AblationRow
from bnkit.lab.store import Parts
from bnkit.lab.threads import keep_freed_memory, one_thread

Profile = Literal["quick", "full"]

PROTOCOL = 2  # raise it when a change here changes the numbers: kept parts are then not reused
SEEDS = {"quick": 3, "full": 10}
LRS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
ROWS: tuple[tuple[Activation, Init, bool], ...] = (
    ("relu", "normal", False),
    ("relu", "normal", True),
    ("relu", "he", False),
    ("relu", "he", True),
    ("tanh", "normal", False),
    ("tanh", "normal", True),
    ("tanh", "xavier", False),
    ("tanh", "xavier", True),
)
CHECK_EVERY = 10


def run_ablation(
    config: MofanConfig,
    *,
    profile: Profile = "quick",
    parts: Parts | None = None,
    progress: Progress = silent,
) -> Ablation:
    """Final cost of the tutorial's network over initializations and learning rates.

    The data is the tutorial's; only the first weights vary with the seed, and the same seed gives
    the same draw at every learning rate, with and without batch norm.

    Args:
        config: The numbers of the tutorial; its learning rate is not used.
        profile: "quick" for 3 seeds, "full" for 10.
        parts: Where finished parts are kept; None keeps nothing.
        progress: Told how far the work is, in the stage "ablation".

    Returns:
        One row per network, one cell per learning rate.
    """
    parts = Parts() if parts is None else parts
    keep_freed_memory()
    seeds = tuple(range(config.seed, config.seed + SEEDS[profile]))
    rows = tuple(
        _kept_row(config, number, seeds, parts=parts, progress=progress)
        for number in range(len(ROWS))
    )
    return Ablation(len(seeds), LRS, rows)


def _kept_row(
    config: MofanConfig,
    number: int,
    seeds: tuple[int, ...],
    *,
    parts: Parts,
    progress: Progress,
) -> AblationRow:
    activation, init, batch_norm = ROWS[number]
    key = {
        **config.to_dict(),
        "row": ROWS[number],
        "seeds": seeds,
        "lrs": LRS,
        "protocol": PROTOCOL,
        "torch": torch.__version__,
    }

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        progress(stage, number * total + done, len(ROWS) * total, note)

    def compute() -> dict:
        costs = final_costs(config, ROWS[number], seeds, LRS, progress=report)
        cells = tuple(_cell(lr, costs[i :: len(LRS)]) for i, lr in enumerate(LRS))
        return AblationRow(activation, init, batch_norm, cells).to_dict()

    name = f"ablation-{activation}-{init}-{'bn' if batch_norm else 'plain'}"
    row = rebuild(AblationRow, parts.get(name, key, compute))
    report("ablation", config.steps, config.steps)
    return row


def final_costs(
    config: MofanConfig,
    row: tuple[Activation, Init, bool],
    seeds: tuple[int, ...],
    lrs: tuple[float, ...],
    *,
    progress: Progress = silent,
) -> list[float]:
    """Cost after the last step for every seed and learning rate, trained side by side.

    A network whose parameters are not finite can never recover; it is dropped early and its cost
    is NaN.

    Args:
        config: The numbers of the tutorial.
        row: Activation, initialization, with or without batch norm.
        seeds: Seeds of the first weights.
        lrs: Learning rates.
        progress: Told how far the work is, in the stage "ablation".

    Returns:
        `len(seeds) * len(lrs)` costs, learning rates varying fastest.
    """
    activation, init, batch_norm = row
    data = parabola(config.data_seed, config.samples)
    x, y = (torch.from_numpy(v.T).float() for v in (data.x, data.y))
    weights = [draw_weights(config, seed, init) for seed in seeds for _ in lrs]
    nets = Networks(config, weights, activation, batch_norm=batch_norm)
    lr = torch.tensor(lrs).repeat(len(seeds))
    alive = torch.arange(len(weights))
    costs = torch.full((len(weights),), torch.nan)
    with one_thread():
        for step in range(config.steps):
            if step % CHECK_EVERY == 0:
                kept = ~nets.lost()
                if not kept.all():
                    nets.keep(kept)
                    lr, alive = lr[kept], alive[kept]
                progress("ablation", step, config.steps)
            if not len(alive):
                break
            nets.step(x, y, lr)
        if len(alive):
            with torch.no_grad():
                costs[alive] = nets.cost(x, y)
    return costs.tolist()


def _cell(lr: float, costs: list[float]) -> AblationCell:
    finite = [c for c in costs if isfinite(c)]
    lost = len(costs) - len(finite)
    middle = median(finite) if len(finite) > lost else None
    return AblationCell(lr, middle, lost, len(costs))

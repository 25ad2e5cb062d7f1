"""Seed 003, the tutorial of Mofan, exactly: four networks, their histograms and cost curves."""

from math import isfinite, isnan

import torch
from torch import Tensor

from bnkit.lab.ablation import Profile, run_ablation
from bnkit.lab.claims import judge
from bnkit.lab.data import Parabola, parabola
from bnkit.lab.network import Activation, MofanConfig, Networks, draw_weights
from bnkit.lab.plain import rebuild
from bnkit.lab.progress import Progress, silent
from bnkit.lab.record import CostCurve, LayerHistory, LayerRecord, Mofan, MofanRun, State
from bnkit.lab.sketch import Kind, sketch, window_edges
from bnkit.lab.store import Parts
from bnkit.lab.threads import one_thread

PROTOCOL = 2  # raise it when a change here changes the numbers: kept parts are then not reused
ARMS: tuple[tuple[Activation, bool], ...] = (
    ("relu", False),
    ("relu", True),
    ("tanh", False),
    ("tanh", True),
)


def run_mofan(
    config: MofanConfig | None = None,
    *,
    profile: Profile | None = "quick",
    parts: Parts | None = None,
    progress: Progress = silent,
) -> Mofan:
    """Train relu and tanh, each with and without batch norm, and judge the tutorial's sentences.

    Args:
        config: The numbers of the experiment; None takes the tutorial's.
        profile: Size of the ablation over initialization and learning rate; None leaves it out.
        parts: Where finished parts are kept; None keeps nothing.
        progress: Told how far the work is, in the stages "mofan" and "ablation".

    Returns:
        The four runs, the claims and the ablation.
    """
    config = MofanConfig() if config is None else config
    parts = Parts() if parts is None else parts
    runs = tuple(
        _kept_run(config, number, parts=parts, progress=progress) for number in range(len(ARMS))
    )
    ablation = None
    if profile is not None:
        ablation = run_ablation(config, profile=profile, parts=parts, progress=progress)
    return Mofan(
        config=config.to_dict(),
        record_steps=config.record_steps,
        reference=parabola(config.data_seed, config.samples).reference(),
        runs=runs,
        claims=judge(runs),
        ablation=ablation,
    )


def _kept_run(config: MofanConfig, number: int, *, parts: Parts, progress: Progress) -> MofanRun:
    activation, batch_norm = ARMS[number]
    key = {
        **config.to_dict(),
        "activation": activation,
        "batch_norm": batch_norm,
        "protocol": PROTOCOL,
        "torch": torch.__version__,
    }

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        progress(stage, number * total + done, len(ARMS) * total, note)

    def compute() -> dict:
        return train(config, activation, batch_norm=batch_norm, progress=report).to_dict()

    name = f"mofan-{activation}-{'bn' if batch_norm else 'plain'}"
    run = rebuild(MofanRun, parts.get(name, key, compute))
    report("mofan", config.steps, config.steps)
    return run


def train(
    config: MofanConfig,
    activation: Activation,
    *,
    batch_norm: bool,
    progress: Progress = silent,
) -> MofanRun:
    """Train one network of the tutorial and record it.

    Histograms are taken before the step, the cost after it, as in the tutorial's loop.

    Args:
        config: The numbers of the experiment.
        activation: Name of the activation.
        batch_norm: Normalize the input and every hidden layer before its activation.
        progress: Told how far the work is, in the stage "mofan".

    Returns:
        Histograms of all layer inputs and the cost curve.
    """
    x, y = _tensors(parabola(config.data_seed, config.samples))
    weights = draw_weights(config, config.seed)
    nets = Networks(config, [weights], activation, batch_norm=batch_norm)
    lr = torch.tensor([config.lr])
    records: list[list[LayerRecord]] = []
    costs: list[float] = []
    with one_thread():
        for step in range(config.steps):
            if step % config.record_every == 0:
                records.append(_record(nets, x, step, activation))
                progress("mofan", step, config.steps)
            nets.step(x, y, lr)
            if step % config.cost_every == 0:
                with torch.no_grad():
                    costs.append(nets.cost(x, y).item())
    steps = tuple(range(0, config.steps, config.cost_every))
    return MofanRun(activation, batch_norm, _curve(steps, costs), _histories(records))


def _tensors(data: Parabola) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.x.T).float(), torch.from_numpy(data.y.T).float()


def _record(nets: Networks, x: Tensor, step: int, activation: Activation) -> list[LayerRecord]:
    with torch.no_grad():
        layer_inputs, _ = nets.forward(x)
    kinds: tuple[Kind, ...] = ("input", *(activation for _ in layer_inputs[1:]))
    return [
        sketch(values[0].T.numpy(), window_edges(layer), step=step, kind=kind)
        for layer, (values, kind) in enumerate(zip(layer_inputs, kinds, strict=True))
    ]


def _histories(records: list[list[LayerRecord]]) -> tuple[LayerHistory, ...]:
    by_layer = zip(*records, strict=True)
    return tuple(LayerHistory(i, window_edges(i), tuple(r)) for i, r in enumerate(by_layer))


def _curve(steps: tuple[int, ...], costs: list[float]) -> CostCurve:
    values = tuple(c if isfinite(c) else None for c in costs)
    return CostCurve(steps, values, tuple(_state(c) for c in costs))


def _state(cost: float) -> State:
    if isfinite(cost):
        return "finite"
    return "nan" if isnan(cost) else "inf"

"""The study of the twins: choose a learning rate for each, train the pairs, judge the modes."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from bnkit.lab.data import Split, digits
from bnkit.lab.modes import ModeRun, judge_modes, summarize
from bnkit.lab.plain import Record, rebuild, to_plain
from bnkit.lab.progress import Progress, silent
from bnkit.lab.record import Arm, SweepPoint, Text, TwinRun, Twins
from bnkit.lab.store import Parts
from bnkit.lab.twins import ARM_IDS, ArmId, TwinConfig, build, train

PROTOCOL = 2  # raise it when a change here changes the numbers: kept parts are then not reused
LAST = 3  # records whose mean validation accuracy decides between learning rates
NAMES = {
    "bn": Text("with batch norm", "有批归一化"),
    "plain": Text("without batch norm", "无批归一化"),
}


@dataclass(frozen=True, slots=True)
class TwinPart(Record):
    """One finished training, and the ways of judging it where it has batch norm."""

    run: TwinRun
    modes: ModeRun | None


class _Study:
    """The trainings of one study, counted for the progress display."""

    def __init__(self, config: TwinConfig, parts: Parts, progress: Progress) -> None:
        self.config = config
        self.parts = parts
        self.total = len(ARM_IDS) * (len(config.lrs) + len(config.seeds)) * config.steps
        self._progress = progress
        self._done = 0
        self._split: Split | None = None

    @property
    def split(self) -> Split:
        """The digits, loaded when the first part is not there yet."""
        if self._split is None:
            self._split = digits(self.config.split_seed)
        return self._split

    def part(self, arm: ArmId, seed: int, lr: float) -> TwinPart:
        """Train, or take the finished training."""
        judged = arm == "bn" and seed in self.config.seeds
        key = {
            **self._training(),
            "arm": arm,
            "seed": seed,
            "lr": lr,
            "judged": judged,
            "protocol": PROTOCOL,
            "torch": torch.__version__,
        }
        name = f"twins-{arm}-{seed}-{lr:g}"
        kept = self.parts.get(name, key, lambda: self._compute(arm, seed, lr, judged=judged))
        self._done += self.config.steps
        self._progress("twins", self._done, self.total)
        return rebuild(TwinPart, kept)

    def _compute(self, arm: ArmId, seed: int, lr: float, *, judged: bool) -> dict[str, Any]:
        trained = train(
            self.config,
            self.split,
            arm,
            seed=seed,
            lr=lr,
            listen=judged,
            progress=self._report,
        )
        modes = judge_modes(trained, self.split) if judged else None
        return TwinPart(trained.run, modes).to_dict()

    def _report(self, stage: str, done: int, total: int, note: str = "") -> None:
        steps = self.config.steps * done // total
        self._progress(stage, self._done + steps, self.total, note)

    def _training(self) -> dict[str, Any]:
        """What a single training depends on: not the other seeds and rates."""
        whole = self.config.to_dict()
        return {k: v for k, v in whole.items() if k not in {"seeds", "sweep_seed", "lrs"}}


def run_twins(
    config: TwinConfig | None = None,
    *,
    parts: Parts | None = None,
    progress: Progress = silent,
) -> Twins:
    """Train the twins over paired seeds, each arm at its own best learning rate.

    Args:
        config: How to train; None takes the defaults.
        parts: Where finished parts are kept; None keeps nothing.
        progress: Told how far the work is, in the stage "twins", in training steps.

    Returns:
        Both arms, the ways of judging the one with batch norm, and its statistics.
    """
    config = TwinConfig() if config is None else config
    study = _Study(config, Parts() if parts is None else parts, progress)
    arms, modes = [], []
    for arm in ARM_IDS:
        sweep = tuple(
            SweepPoint(lr, _level(study.part(arm, config.sweep_seed, lr).run)) for lr in config.lrs
        )
        best = max(sweep, key=lambda point: point.val_accuracy).lr
        finished = [study.part(arm, seed, best) for seed in config.seeds]
        modes += [part.modes for part in finished if part.modes is not None]
        runs = tuple(part.run for part in finished)
        arms.append(Arm(arm, NAMES[arm], best, sweep, runs))
    mode, layers = summarize(tuple(modes))
    return Twins(_describe(study, arms), tuple(arms), mode, layers)


def _level(run: TwinRun) -> float:
    return fmean(run.val_accuracy[-LAST:])


def _describe(study: _Study, arms: list[Arm]) -> dict[str, Any]:
    config, split = study.config, study.split
    words: dict[ArmId, str] = {"bn": "with", "plain": "without"}
    return {
        "data": "digits",
        "train": len(split.train),
        "val": len(split.val),
        "test": len(split.test),
        **config.to_dict(),
        "lr": {words[arm.id]: arm.lr for arm in arms},
        "lr_rule": to_plain(_rule(len(config.lrs))),
        "parameters": {words[arm]: _parameters(config, arm) for arm in ARM_IDS},
    }


def _rule(rates: int) -> Text:
    return Text(
        f"each arm uses that of {rates} rates which reached the best validation accuracy (mean of "
        f"the last {LAST} records) in one run with an extra seed; it falls linearly to 0",
        f"每组从 {rates} 个学习率中选用在一次额外种子的训练里验证准确率（最后 {LAST} 次记录的均值）"
        "最高的一个；随后线性降为 0",
    )


def _parameters(config: TwinConfig, arm: ArmId) -> int:
    model = build(config.channels, batch_norm=arm == "bn", seed=0)
    return sum(p.numel() for p in model.parameters())

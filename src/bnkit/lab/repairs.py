"""A trained twin with one fault after the other: found by the doctor, measured, mended."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnkit.doctor.catalogue import chinese_page
from bnkit.doctor.diagnosing import diagnose
from bnkit.doctor.diagnosis import Diagnosis
from bnkit.doctor.mending import Mending, mend
from bnkit.lab.data import Part, Split, digits, raw_pixels
from bnkit.lab.modes import left_in_train
from bnkit.lab.plain import rebuild
from bnkit.lab.progress import Progress, silent
from bnkit.lab.record import LayerVerdict, Repair, Repairs, Text
from bnkit.lab.store import Parts
from bnkit.lab.threads import one_thread
from bnkit.lab.twins import TwinConfig, accuracy, batch_norms, train
from bnkit.recalibration import recalibrate_

PROTOCOL = 1  # raise it when a change here changes the numbers: kept parts are then not reused
BATCHES = 16  # of 64 images
PASSES = 20

_MENDS = {
    "recalibrate": Text("bnkit fix --recalibrate", "bnkit fix --recalibrate"),
    "eval": Text("bnkit fix", "bnkit fix"),
    "hand": Text("by hand; recalibration was refused", "手动处理；拒绝重新校准"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to break a trained network.

    Attributes:
        id: Short name.
        name: What happened, in words.
        expected: Code of the rule that should name it.
        plant: Breaks a copy of the network, in place.
        prepare: What becomes of the images before they are given to the network.
    """

    id: str
    name: Text
    expected: str
    plant: Callable[[nn.Module], object] = lambda _: None
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda images: images


def _lose(model: nn.Module) -> None:
    for layer in batch_norms(model).values():
        layer.reset_running_stats()


def _overflow(model: nn.Module) -> None:
    layer = list(batch_norms(model).values())[1]
    for values in (layer.running_mean, layer.running_var):
        if values is not None:
            values[3] = float("nan")


def _pass_zeros(model: nn.Module) -> None:
    model.train()
    for _ in range(PASSES):
        model(torch.zeros(16, 1, 8, 8))
    model.eval()


FAULTS = (
    Fault(
        id="lost",
        name=Text(
            "Only the parameters were saved, the running statistics are lost",
            "只保存了参数，运行统计量丢失",
        ),
        expected="BN201",
        plant=_lose,
    ),
    Fault(
        id="overflow",
        name=Text(
            "One overflow left NaN in one channel of the second layer",
            "一次溢出在第二层的一个通道里留下了 NaN",
        ),
        expected="BN202",
        plant=_overflow,
    ),
    Fault(
        id="zeros",
        name=Text(
            f"{PASSES} forward passes of zeros in train mode, to find out shapes",
            f"为了探测形状，在训练模式下用全零输入前向传播了 {PASSES} 次",
        ),
        expected="BN204",
        plant=_pass_zeros,
    ),
    Fault(
        id="pixels",
        name=Text(
            "Pixels from 0 to 16 are given to a network that learned standardized ones",
            "网络学的是标准化的像素，推理时却给了 0 到 16 的像素",
        ),
        expected="BN505",
        prepare=raw_pixels,
    ),
    Fault(
        id="train-mode",
        name=Text(
            "The network was left in train mode and serves one image at a time",
            "网络停留在训练模式，每次处理一张图像",
        ),
        expected="BN301",
        plant=lambda model: model.train(),
    ),
)


def run_repairs(
    config: TwinConfig,
    lr: float,
    *,
    parts: Parts | None = None,
    progress: Progress = silent,
) -> Repairs:
    """Train one twin with batch norm, break it in every way, and let the doctor mend it.

    Args:
        config: How the twins are trained; the first of its seeds is taken.
        lr: Learning rate.
        parts: Where the finished result is kept; None keeps nothing.
        progress: Told how far the work is, in the stage "doctor".

    Returns:
        One row per fault.
    """
    seed, total = config.seeds[0], len(FAULTS) + 1
    key = {
        "twins": config.to_dict(),
        "lr": lr,
        "seed": seed,
        "protocol": PROTOCOL,
        "torch": torch.__version__,
    }

    def compute() -> dict[str, Any]:
        split = digits(config.split_seed)
        progress("doctor", 0, total)
        model = train(config, split, "bn", seed=seed, lr=lr, listen=False).model
        rows = []
        with one_thread():
            found = diagnose(model, (split.train.images, split.train.labels), batches=BATCHES)
            for number, fault in enumerate(FAULTS, 1):
                progress("doctor", number, total, fault.id)
                rows.append(_repair(model, split, fault))
            right = accuracy(model, split.test)
        facts = {"seed": seed, "lr": lr, "batches": BATCHES, "faults": len(FAULTS)}
        return Repairs(facts, right, len(found.findings), tuple(rows)).to_dict()

    kept = (Parts() if parts is None else parts).get("doctor", key, compute)
    progress("doctor", total, total)
    return rebuild(Repairs, kept)


def _repair(model: nn.Module, split: Split, fault: Fault) -> Repair:
    broken = deepcopy(model)
    with torch.no_grad():
        fault.plant(broken)
    data = fault.prepare(split.train.images), split.train.labels
    shown = Part(fault.prepare(split.test.images), split.test.labels)
    done = mend(
        broken,
        data,
        recalibrate=lambda copy: recalibrate_(copy, data, batches=BATCHES),
        batches=BATCHES,
    )
    before = _served(broken, shown)
    if done.refused is None:
        after, then = _served(done.model, shown), done.after
    else:
        # what the doctor advises instead: the images as in training
        after = _served(broken, split.test)
        then = diagnose(broken, (split.train.images, split.train.labels), batches=BATCHES)
    return _row(fault, done, before=before, after=after, then=then)


def _row(fault: Fault, done: Mending, *, before: float, after: float, then: Diagnosis) -> Repair:
    found = done.before
    first = found.findings[0] if found.findings else None
    verb = done.steps[0].rpartition(" ")[2] if done.refused is None else "hand"
    probed = [] if found.probe is None else found.probe.in_order
    return Repair(
        id=fault.id,
        name=fault.name,
        expected=fault.expected,
        code=None if first is None else first.code,
        rule=None if first is None else first.name,
        severity=None if first is None else first.severity.label,
        certainty=None if first is None else first.found.certainty,
        said=_said(found),
        layers=tuple(LayerVerdict(one.name, one.verdict) for one in probed),
        eval_accuracy=None if found.impact is None else found.impact.before,
        batch_accuracy=None if found.impact is None else found.impact.after,
        before=before,
        steps=done.steps if done.refused is None else (),
        refused=done.refused,
        mend=_MENDS[verb],
        after=after,
        errors_after=len(then.errors),
    )


def _said(found: Diagnosis) -> Text:
    if not found.findings:
        return Text("Nothing was found.", "没有发现问题。")
    first = found.findings[0]
    page = chinese_page(first.code)
    return Text(first.message, first.message if page is None else page.splitlines()[0])


def _served(model: nn.Module, part: Part) -> float:
    """Share of images right in the mode that the model is in; in train mode one at a time."""
    return left_in_train(model, part, 1) if model.training else accuracy(model, part)

"""The fault suite: every measured fault of batch norm, planted on purpose in a trained network."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from bnkit.doctor.finding import Purpose
from bnkit.lab.data import Split, digits, raw_pixels
from bnkit.lab.faulty import (
    Layer,
    Training,
    changed,
    layers_of,
    mixed_rows,
    network,
    sorted_rows,
    train,
)

SHIFT, SCALE = 2.0, -3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A network with a known fault, and how the doctor is asked.

    Attributes:
        model: The network.
        data: Images and labels.
        expected: Code of the root cause, or None where there must be no error.
        cause: The signature that must be named, where there is one.
        purpose: What the network is declared for.
        options: Further arguments of `diagnose`.
    """

    model: nn.Module
    data: Any
    expected: str | None
    cause: str | None = None
    purpose: Purpose = "infer"
    options: dict[str, Any] = field(default_factory=dict)


@cache
def split_of_digits() -> Split:
    """The digits, 1000 to train on and 480 to test on."""
    return digits()


@cache
def healthy(seed: int = 0) -> nn.Module:
    """A network trained as it should be."""
    torch.manual_seed(seed)
    return train(network(), split_of_digits(), Training(seed=seed))


def _patient(model: nn.Module, expected: str | None, **more: Any) -> Patient:
    return Patient(model=model, data=mixed_rows(split_of_digits()), expected=expected, **more)


def _trained(how: Training, *, in_eval: bool = False, **shape: Any) -> nn.Module:
    torch.manual_seed(how.seed)
    return train(network(**shape), split_of_digits(), how, in_eval=in_eval)


def _planted(expected: str | None, change: Callable[[list[Layer]], object], **more: Any) -> Patient:
    return _patient(changed(healthy(), change), expected, **more)


def _reset(layers: list[Layer]) -> None:
    for layer in layers:
        layer.reset_running_stats()


def _poisoned(layers: list[Layer]) -> None:
    for one in (layers[1].running_mean, layers[1].running_var):
        if one is not None:
            one[3] = float("nan")


def _scaled(layers: list[Layer]) -> None:
    for layer in layers:
        layer.running_mean *= 999.98  # type: ignore[operator]
        layer.running_var *= 999.98  # type: ignore[operator]


def _deviations(layers: list[Layer]) -> None:
    for layer in layers:
        layer.running_var.sqrt_()  # type: ignore[union-attr]


def _corrupted(layers: list[Layer]) -> None:
    noise = torch.Generator().manual_seed(1)
    layers[0].running_mean.copy_(2 * torch.randn(16, generator=noise))  # type: ignore[union-attr]
    layers[0].running_var.copy_(3 * torch.rand(16, generator=noise) + 0.01)  # type: ignore[union-attr]


def _permuted(layers: list[Layer]) -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    layers[2].running_mean.copy_(layers[2].running_mean[order])  # type: ignore
    layers[2].running_var.copy_(layers[2].running_var[order])  # type: ignore


def _dead(layers: list[Layer]) -> None:
    layers[2].weight[:40] = 0
    layers[2].bias[:40] = 0


def _forwards(draw: Callable[[], torch.Tensor]) -> nn.Module:
    copy = deepcopy(healthy()).train()
    torch.manual_seed(3)
    with torch.no_grad():
        for _ in range(20):
            copy(draw())
    return copy.eval()


def _left_after_fold() -> nn.Module:
    copy: Any = deepcopy(healthy())
    convolution, layer = copy[0], copy[1]
    with torch.no_grad():
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        folded = nn.Conv2d(1, 16, 3, padding=1)
        folded.weight.copy_(convolution.weight * scale.view(-1, 1, 1, 1))
        folded.bias.copy_(layer.bias - layer.running_mean * scale)  # type: ignore[union-attr]
    copy[0] = folded
    return copy.eval()


def _small_variances() -> nn.Module:
    copy: Any = deepcopy(healthy())
    convolutions = [m for m in copy if isinstance(m, nn.Conv2d)]
    last = layers_of(copy)[2]
    with torch.no_grad():
        factor = 0.0005 / float(last.running_var.median().sqrt())  # type: ignore[union-attr]
        convolutions[2].weight *= factor
        last.running_mean *= factor  # type: ignore[operator]
        last.running_var *= factor**2  # type: ignore[operator]
    last.eps = 1e-3
    return copy


def _averaged_parameters() -> nn.Module:
    torch.manual_seed(0)
    average = network()
    with torch.no_grad():
        for mine, other in zip(average.parameters(), healthy().parameters(), strict=True):
            mine.copy_(other)
    return average.eval()


def _domains() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model, split, how = network(), split_of_digits(), Training(steps=400)
    images, labels = mixed_rows(split)
    other = SCALE * images + SHIFT
    optimizer = torch.optim.SGD(model.parameters(), how.lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(how.steps):
        rows = torch.randint(len(images), (how.batch,), generator=generator)
        optimizer.zero_grad()
        x = (other if step % 2 else images)[rows]
        nn.functional.cross_entropy(model(x), labels[rows]).backward()
        optimizer.step()
    return model.eval(), {"one": (images, labels), "two": (other, labels)}


def _drifted_backbone() -> nn.Module:
    copy: Any = deepcopy(healthy())
    for parameter in copy[:-1].parameters():
        parameter.requires_grad_(requires_grad=False)
    split = split_of_digits()
    part = type(split.train)(SCALE * split.train.images + SHIFT, split.train.labels)
    shifted = type(split)(part, split.val, split.test)
    train(copy, shifted, Training(steps=100, lr=0.01))
    return copy


def _several_domains() -> Patient:
    model, domains = _domains()
    return Patient(model=model, data=domains["one"], expected="BN507", options={"domains": domains})


def _raw_pixels() -> Patient:
    images, labels = mixed_rows(split_of_digits())
    data = raw_pixels(images), labels
    return Patient(model=healthy(), data=data, expected="BN505", cause="input-scale")


def _sorted_training() -> Patient:
    model = _trained(Training(by_class=True, lr=0.02))
    return Patient(model=model, data=sorted_rows(split_of_digits()), expected="BN503")


def _averaged_weights() -> Patient:
    more = {"pair": healthy(), "relation": "averaged"}
    copy = _averaged_parameters()
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter *= 0.999
    return _patient(copy, "BN215", options=more)


FAULTS: dict[str, Callable[[], Patient]] = {
    "healthy": lambda: _patient(healthy(), None),
    "momentum 0.01, long": lambda: _patient(_trained(Training(steps=600), momentum=0.01), None),
    "cumulative average": lambda: _patient(_trained(Training(steps=400), momentum=None), None),
    "trained in eval": lambda: _patient(_trained(Training(lr=0.02), in_eval=True), "BN308"),
    "momentum 0": lambda: _patient(_trained(Training(), momentum=0.0), "BN206"),
    "buffers lost": lambda: _planted("BN201", _reset),
    "average of the parameters alone": lambda: _patient(_averaged_parameters(), "BN201"),
    "average with stale buffers": _averaged_weights,
    "momentum 0.99": lambda: _patient(_trained(Training(), momentum=0.99), "BN206"),
    "40 steps at momentum 0.01": lambda: _patient(
        _trained(Training(steps=40), momentum=0.01), "BN205"
    ),
    "NaN in one channel": lambda: _planted("BN202", _poisoned),
    "pixels 0..16": _raw_pixels,
    "dropout 0.5 before batch norm": lambda: _patient(_trained(Training(), dropout=0.5), "BN102"),
    "20 forwards of zeros": lambda: _patient(
        _forwards(lambda: torch.zeros(16, 1, 8, 8)), "BN204", cause="dummy-forwards"
    ),
    "20 forwards of noise": lambda: _patient(
        _forwards(lambda: torch.rand(16, 1, 8, 8)), "BN204", cause="other-data"
    ),
    "sorted by class": _sorted_training,
    "batches of 2": lambda: _patient(_trained(Training(batch=2, steps=1500, lr=0.005)), None),
    "deviation stored as variance": lambda: _planted(
        "BN204", _deviations, cause="std-stored-as-variance"
    ),
    "Caffe's factor": lambda: _planted("BN210", _scaled, cause="caffe-factor"),
    "eps 1e-3 on small variances": lambda: _patient(_small_variances(), "BN207"),
    "shared by two domains": _several_domains,
    "frozen backbone, live statistics": lambda: _patient(
        _drifted_backbone(), "BN204", cause="other-data"
    ),
    "frozen backbone, while training": lambda: _patient(
        _drifted_backbone().train(), "BN302", purpose="finetune"
    ),
    "one layer corrupted": lambda: _planted("BN204", _corrupted, cause="one-layer"),
    "left in after folding": lambda: _patient(_left_after_fold(), "BN704"),
    "channels permuted": lambda: _planted("BN211", _permuted),
    "40 of 64 channels dead": lambda: _planted("BN401", _dead),
    "statistics not tracked": lambda: _patient(
        _trained(Training(), tracks=False), "BN303", cause="untracked-statistics"
    ),
    "weight 0 in a plain chain": lambda: _planted("BN402", lambda ls: ls[1].weight.zero_()),
    "left in train mode": lambda: _patient(deepcopy(healthy()).train(), "BN301"),
}


def healthy_trainings() -> dict[str, Callable[[], Patient]]:
    """32 trainings without a fault: batch size, momentum, schedule and seed vary.

    Returns:
        Patients to be built, by name.
    """
    found = {}
    for batch, steps, lr in ((4, 1500, 0.01), (16, 700, 0.03), (64, 300, 0.05), (128, 250, 0.1)):
        for momentum in (0.1, 0.01):
            for cosine in (True, False):
                for seed in (1, 2):
                    how = Training(seed=seed, steps=steps, batch=batch, lr=lr, cosine=cosine)
                    schedule = "cosine" if cosine else "constant"
                    name = f"batch {batch}, momentum {momentum}, {schedule}, seed {seed}"
                    found[name] = partial(_healthy_patient, how, momentum)
    return found


def _healthy_patient(how: Training, momentum: float) -> Patient:
    steps = how.steps if momentum > 0.05 else max(how.steps, 600)
    return _patient(_trained(replace(how, steps=steps), momentum=momentum), None)

"""Every batch norm layer of bnkit.nn, with an input that it takes: what all of them must obey."""

from dataclasses import replace

import pytest
import torch

import bnkit
from bnkit.core import RenormLimits, RenormSchedule
from bnkit.nn.statistics.statistics_policy import WithPolicy

nn = bnkit.nn
SHAPES = {"1d": (6, 4, 5), "2d": (6, 4, 3, 3), "3d": (4, 4, 2, 3, 2)}
# the smallest batch for finite differences divides by nothing
GHOST = {"virtual_batch_size": 2, "remainder": "smaller"}
TIGHT = RenormLimits(rmin=0.8, rmax=1.25, dmax=0.5)
SOON = RenormSchedule(start=1, rmax_end=5, dmax_end=3)


def _named(cls, **given):
    return lambda **options: getattr(nn, cls)(4, **given, **options)


def _domains(**options):
    norms = {name: nn.BatchNorm2d(4, **options) for name in ("day", "night")}
    return nn.DomainBatchNorm(norms, default="night")


def _adjust(shape):
    return 1.5, 1 / shape[0]


# layers whose constructor or input is not that of the others, and further kinds of a layer:
# name -> (make, shape of the input)
SPECIAL = {
    "BatchNorm": (_named("BatchNorm", axis=-1), (6, 5, 4)),
    "BatchNorm two axes": (lambda **k: nn.BatchNorm((2, 2), (1, -1), **k), (6, 2, 3, 2)),
    "BatchNorm renorm ghost": (
        _named("BatchNorm", renorm=True, renorm_clipping={"rmax": 1.2}, virtual_batch_size=2,
               ghost_remainder="smaller"),
        SHAPES["2d"],
    ),
    "BatchNorm adjusted": (
        _named("BatchNorm", adjustment=_adjust, correction=1), SHAPES["1d"],
    ),
    "BatchRenorm2d debiased": (
        _named("BatchRenorm2d", rule="debiased", limits=TIGHT, renorm_momentum=0.3), SHAPES["2d"],
    ),
    "BatchRenorm1d cumulative": (
        _named("BatchRenorm1d", limits=TIGHT, momentum=None), SHAPES["1d"],
    ),
    "GhostBatchNorm1d strided": (
        _named("GhostBatchNorm1d", groups="strided", running="sequential", **GHOST), SHAPES["1d"],
    ),
    "GhostBatchNorm2d total": (_named("GhostBatchNorm2d", running="total", **GHOST), SHAPES["2d"]),
    "DifferentiableBatchNorm1d unrolled": (
        _named("DifferentiableBatchNorm1d", unroll=True), SHAPES["1d"],
    ),
    "WhitenedBatchNorm1d zca": (
        _named("WhitenedBatchNorm1d", method="zca", groups=2), SHAPES["1d"],
    ),
    "WhitenedBatchNorm2d zca": (_named("WhitenedBatchNorm2d", method="zca"), SHAPES["2d"]),
    "DomainBatchNorm": (_domains, SHAPES["2d"]),
}  # fmt: skip
for _d, _shape in SHAPES.items():
    _cls = f"DomainBatchNorm{_d}"
    _two = {"domains": ("day", "night"), "default": "day"}
    SPECIAL[_cls] = _named(_cls, **_two), _shape
    SPECIAL[f"GhostBatchNorm{_d}"] = _named(f"GhostBatchNorm{_d}", **GHOST), _shape
    SPECIAL[f"WhitenedBatchNorm{_d}"] = _named(f"WhitenedBatchNorm{_d}", groups=2), _shape
    SPECIAL[f"BatchRenorm{_d}"] = _named(f"BatchRenorm{_d}", limits=SOON), _shape
# further arguments of lazy layers, and of what they become
LAZY = {f"LazyGhostBatchNorm{_d}": GHOST for _d in SHAPES}
LAZY |= {f"LazyBatchNormAct{_d}": {"act": "none"} for _d in SHAPES}
# what a layer cannot do, and why: name -> {test: reason}; such a test must fail
CANNOT: dict = {}

EXPORTED = sorted(
    name
    for name, item in vars(nn).items()
    if isinstance(item, type) and issubclass(item, torch.nn.Module)
)
LAYERS = sorted({*EXPORTED, *SPECIAL})
EAGER = [name for name in LAYERS if not name.startswith("Lazy")]


def each(test, names):
    """The layers as parameters of one test, with those that cannot pass it marked."""
    return [
        pytest.param(
            name,
            marks=[pytest.mark.xfail(reason=CANNOT[name][test])]
            if test in CANNOT.get(name, {})
            else [],
        )
        for name in names
    ]


def make(name, **options):
    """A layer with random parameters and statistics that have seen data; a lazy one is fresh."""
    if name.startswith("Lazy"):
        return getattr(nn, name)(**LAZY.get(name, {}), **options)
    layer = SPECIAL[name][0](**options) if name in SPECIAL else getattr(nn, name)(4, **options)
    with torch.no_grad():
        for norm in norms(layer).values():
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
            norm.running_mean.normal_()
            if hasattr(norm, "running_var"):
                norm.running_var.uniform_(0.5, 2)
            norm.num_batches_tracked.fill_(3)
    return layer


def norms(layer):
    """What holds statistics: the layer itself, or the batch norm of each domain."""
    return {n: m for n, m in layer.named_modules() if isinstance(m, WithPolicy)}


def batch(name, seed=0, dtype=torch.float32):
    shape = SPECIAL[name][1] if name in SPECIAL else SHAPES.get(name[-2:], SHAPES["2d"])
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype) * 2 + 1


def small(name):
    """A batch for finite differences, which take a pass for each value."""
    x = batch(name, dtype=torch.float64)
    return x[:3] if name.startswith("BatchNorm ") or name == "BatchNorm" else x[:3, :, :2]


def constant_correction(layer):
    """r and d of batch renormalization at their bounds: finite differences see constants."""
    for norm in norms(layer).values():
        if getattr(norm, "renorm", None) is not None:
            norm.renorm = replace(norm.renorm, limits=RenormLimits(rmin=1.1, rmax=1.1, dmax=0.0))
    return layer


def state(layer):
    """Copies of all that a state_dict holds."""
    return {k: v.clone() for k, v in layer.state_dict().items()}


def assert_state(layer, expected, *, exact=True):
    """Bit for bit, or to the rounding of a compiler that orders sums in its own way."""
    assert list(layer.state_dict()) == list(expected)
    for name, value in layer.state_dict().items():
        if exact:
            assert torch.equal(value, expected[name]), name
        else:
            torch.testing.assert_close(value, expected[name], msg=name)

"""Every batch norm layer of bnkit.nn, with an input that it takes: what all of them must obey."""

import pytest
import torch

import bnkit
from bnkit.nn.statistics_policy import WithPolicy

# layers whose constructor or input is not that of the others: name -> (make, input)
SPECIAL: dict = {}
# what a layer cannot do, and why: name -> {test: reason}; such a test must fail
CANNOT: dict = {}
SHAPES = {"1d": (6, 4, 5), "2d": (6, 4, 3, 3), "3d": (4, 4, 2, 3, 2)}

LAYERS = sorted(
    name
    for name, item in vars(bnkit.nn).items()
    if isinstance(item, type) and issubclass(item, WithPolicy)
)
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
    if name in SPECIAL:
        return SPECIAL[name][0](**options)
    cls = getattr(bnkit.nn, name)
    if name.startswith("Lazy"):
        return cls(**options)
    layer = cls(4, **options)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        layer.num_batches_tracked.fill_(3)
    return layer


def batch(name, seed=0, dtype=torch.float32):
    if name in SPECIAL:
        return SPECIAL[name][1](seed, dtype)
    shape = SHAPES.get(name[-2:], SHAPES["2d"])
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype) * 2 + 1


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

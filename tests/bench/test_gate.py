"""The gate lets right kernels through and stops wrong ones, whatever is wrong with them."""

import math
from dataclasses import replace

import pytest
import torch

from bnkit.bench.gate import MEANS, GateError, check_shape, require
from bnkit.bench.providers import BNKIT, TORCH, Layers
from bnkit.bench.results import Check
from bnkit.bench.shapes import Shape

SMALL = Shape("test", (6, 5, 7, 9), "")
FLAT = Shape("test", (40, 12), "")


class Planted(torch.nn.BatchNorm2d):
    """A batch norm with something wrong in it."""

    def __init__(self, c, fault):
        super().__init__(c)
        self.fault = fault

    def forward(self, x, residual=None):
        y = super().forward(x)
        y = y if residual is None else y + residual
        return self.fault(self, x, y)


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, grad):
        return grad * 1.001


def naive_variance(layer, x, _y):
    """E[x^2] - E[x]^2, as the specification forbids."""
    axes = (0, 2, 3)
    mean = x.mean(axes, keepdim=True)
    var = (x * x).mean(axes, keepdim=True) - mean * mean
    w, b = layer.weight.reshape(-1, 1, 1), layer.bias.reshape(-1, 1, 1)
    return (x - mean) * (var + layer.eps).rsqrt() * w + b


def wrong_statistics(layer, _x, y):
    with torch.no_grad():
        layer.running_var = layer.running_var * 1.001
    return y


def not_a_number(_layer, _x, y):
    return torch.where(torch.arange(y.numel()).reshape(y.shape) == 17, math.nan, y)


FAULTS = {
    "scaled output": (lambda _layer, _x, y: y * 1.0001, 0.0, "y"),
    "gradient": (lambda _layer, _x, y: ScaledGradient.apply(y), 0.0, "grad_"),
    "statistics": (wrong_statistics, 0.0, "running_var"),
    "one NaN": (not_a_number, 0.0, "y"),
    "naive variance": (naive_variance, 1000.0, "y"),
}


def planted(fault):
    return Layers(*(lambda c, _: Planted(c, fault),) * 2)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(name):
    fault, mean, quantity = FAULTS[name]
    checks = check_shape(SMALL, "bn", mean, layers=planted(fault))
    red = {check.quantity for check in checks if not check.passed}
    assert any(q.startswith(quantity) for q in red)
    with pytest.raises(GateError, match=r"bn on \(6, 5, 7, 9\).*mean .*Nothing was timed"):
        require(checks)


@pytest.mark.parametrize("operator", ["bn_relu", "bn_add_relu"])
def test_a_forgotten_relu_is_found(operator):
    checks = check_shape(SMALL, operator, 0.0, layers=planted(lambda _layer, _x, y: y))
    assert {"y", "grad_x"} <= {check.quantity for check in checks if not check.passed}


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("operator", ["bn", "bn_relu", "bn_add_relu"])
@pytest.mark.parametrize("shape", [SMALL, FLAT], ids=["NCHW", "NC"])
def test_bnkit_passes(shape, operator, mean):
    checks = check_shape(shape, operator, mean, layers=BNKIT)
    require(checks)
    formats = {check.memory_format for check in checks}
    assert formats == set(shape.formats)
    quantities = {check.quantity for check in checks}
    assert quantities >= {"y", "grad_x", "grad_weight", "grad_bias", "running_mean", "running_var"}
    assert ("grad_residual" in quantities) == (operator == "bn_add_relu")


def test_errors_of_torch_are_measured_and_not_assumed():
    checks = check_shape(SMALL, "bn", 30.0, layers=TORCH)
    y = next(check for check in checks if check.quantity == "y")
    assert 0 < y.torch <= y.error < 1e-4


def test_a_check_passes_by_twice_torch_or_by_the_bound_and_never_with_nan():
    check = Check((1,), "contiguous", "bn", 0.0, "y", error=2e-7, torch=1e-7, bound=0.0)
    assert check.passed
    assert not replace(check, error=2.1e-7).passed
    assert replace(check, error=2.1e-7, bound=3e-7).passed
    assert not replace(check, error=math.nan, bound=math.inf).passed

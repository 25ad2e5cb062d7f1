"""The backward pass with given statistics: the fast way and float64 give the same gradients."""

from dataclasses import replace

import pytest
import torch

from bnkit import ops
from bnkit.ops import activation, registry
from bnkit.ops.activation import NAMES
from tests.tolerances import dtype_tolerance, relative_error

SHAPES = [(1, 5), (7, 5), (6, 5, 3), (4, 33, 8, 8), (2, 3, 2, 3, 4), (2, 16, 40, 40)]

CASES = [(shape, torch.contiguous_format) for shape in SHAPES]
CASES += [(shape, torch.channels_last) for shape in SHAPES if len(shape) == 4]


def values(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(x, grad, mean, var, weight, bias):
    """Automatic differentiation of the formula."""
    x, weight, bias = (t.clone().requires_grad_() for t in (x, weight, bias))
    shape = (1, -1, *(1,) * (x.ndim - 2))
    xhat = (x - mean.reshape(shape)) / (var.reshape(shape) + 1e-5).sqrt()
    y = xhat * weight.reshape(shape) + bias.reshape(shape)
    return torch.autograd.grad(y, (x, weight, bias), grad)


def case(shape, mean=0.0):
    c = shape[1]
    return (
        values(*shape) + mean,
        values(*shape, seed=1),
        values(c, seed=2) + mean,
        values(c, seed=3).abs() + 0.5,
        values(c, seed=4),
        values(c, seed=5),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_gradients(shape, layout, dtype):
    x, grad, mean, var, weight, bias = (t.to(dtype) for t in case(shape))
    x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    expected = reference(*(t.double() for t in (x, grad, mean, var, weight, bias)))
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [x.requires_grad_(), *(t.to(wide).requires_grad_() for t in (weight, bias))]
    y = ops.batch_norm_eval(x, (mean.to(wide), var.to(wide)), *leaves[1:], 1e-5)
    got = torch.autograd.grad(y, leaves, grad)
    assert got[0].dtype == dtype
    assert got[0].is_contiguous(memory_format=layout)
    name = str(dtype).removeprefix("torch.")
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a.double(), b) < 10 * dtype_tolerance(name)


def test_statistics_far_from_the_batch_and_a_gradient_without_strides():
    x, _, mean, var, weight, bias = case((8, 4, 5, 5), mean=1000.0)
    mean = mean - 300
    grad = torch.ones(()).double().expand(x.shape)
    expected = reference(x, grad, mean, var, weight, bias)
    leaves = [t.float().requires_grad_() for t in (x, weight, bias)]
    y = ops.batch_norm_eval(leaves[0], (mean.float(), var.float()), *leaves[1:], 1e-5)
    for a, b in zip(torch.autograd.grad(y.sum(), leaves), expected, strict=True):
        assert relative_error(a.double(), b) < 1e-5


@pytest.mark.parametrize(
    ("wanted", "left_out"),
    [(w, "") for w in ("x", "weight", "bias", "x bias", "weight bias")]
    + [("x bias", "weight"), ("bias", "weight"), ("x weight", "bias"), ("weight", "bias")],
)
def test_only_what_is_wanted(wanted, left_out):
    x, grad, mean, var, weight, bias = case((4, 3, 5))
    parts = {"x": x, "weight": weight, "bias": bias}
    names = wanted.split()
    expected = dict(
        zip(
            parts,
            reference(
                x,
                grad,
                mean,
                var,
                torch.ones_like(weight) if left_out == "weight" else weight,
                torch.zeros_like(bias) if left_out == "bias" else bias,
            ),
            strict=True,
        )
    )
    for name in names:
        parts[name].requires_grad_()
    given = [None if name == left_out else parts[name] for name in ("weight", "bias")]
    y = ops.batch_norm_eval(x, (mean, var), *given, 1e-5)
    got = torch.autograd.grad(y, [parts[name] for name in names], grad)
    for name, value in zip(names, got, strict=True):
        torch.testing.assert_close(value, expected[name])


def test_an_empty_batch():
    x = torch.empty(0, 3, 4, requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    y = ops.batch_norm_eval(x, (torch.zeros(3), torch.ones(3)), weight, None, 1e-5)
    by_x, by_weight = torch.autograd.grad(y.sum(), (x, weight))
    assert by_x.shape == x.shape
    assert by_weight.tolist() == [0, 0, 0]


FUSED = [(a, r) for a in NAMES for r in (False, True) if (a, r) != ("none", False)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("act", "with_residual"), FUSED)
def test_behind_an_activation_and_a_residual(act, with_residual, dtype, layout):
    """The kernel against automatic differentiation of the formula, in float64."""
    x, grad, mean, var, weight, bias = case((4, 33, 5, 7))
    x, grad = (t.to(dtype).contiguous(memory_format=layout) for t in (x, grad))
    residual = values(4, 33, 5, 7, seed=6).to(dtype).contiguous(memory_format=layout)
    wide = torch.promote_types(dtype, torch.float32)
    mean, var, weight, bias = (t.to(wide) for t in (mean, var, weight, bias))
    chosen = activation(act)
    given = [x, weight, bias, *([residual] if with_residual else [])]
    exact = [t.double().requires_grad_() for t in given]
    spread = (1, -1, 1, 1)
    xhat = (exact[0] - mean.double().reshape(spread)) / (var.double() + 1e-5).sqrt().reshape(spread)
    z = xhat * exact[1].reshape(spread) + exact[2].reshape(spread)
    z = chosen(z + exact[3] if with_residual else z)
    expected = torch.autograd.grad(z, exact, grad.double())
    leaves = [t.requires_grad_() for t in given]
    y = ops.batch_norm_eval(
        leaves[0], (mean, var), *leaves[1:3], 1e-5, residual=(*leaves, None)[3], act=chosen
    )
    got = torch.autograd.grad(y, leaves, grad)
    for a, b, t in zip(got, expected, leaves, strict=True):
        assert (a.dtype, a.stride()) == (t.dtype, t.stride())
        assert relative_error(a.double(), b) < 10 * dtype_tolerance(str(dtype)[6:])


@pytest.mark.parametrize("wanted", ["x", "weight", "residual", "x bias", "bias residual"])
@pytest.mark.parametrize("kernel", ["numba", "reference"])
def test_only_what_is_wanted_behind_an_activation(wanted, kernel):
    x, grad, mean, var, weight, bias = case((4, 3, 5))
    parts = {"x": x, "weight": weight, "bias": bias, "residual": values(4, 3, 5, seed=6)}
    names = wanted.split()
    leaves = [parts[name].requires_grad_() for name in names]

    def run():
        given = parts["x"], (mean, var), parts["weight"], parts["bias"], 1e-5
        return ops.batch_norm_eval(*given, residual=parts["residual"], act=activation("relu"))

    with ops.use_kernel(kernel):
        y = run()
        got = torch.autograd.grad(y, leaves, grad, retain_graph=True)
        graph = torch.autograd.grad(y, leaves, grad, create_graph=True)
        several = torch.autograd.grad(y, leaves, grad.expand(2, -1, -1, -1), is_grads_batched=True)
    for a, b, c in zip(got, graph, several, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(c[1], b)


def test_a_kernel_without_it_takes_the_differentiable_way(monkeypatch):
    x, grad, mean, var, weight, bias = case((4, 3, 5))
    x.requires_grad_()
    before = registry._KERNELS["numba"]

    def gradient():
        y = ops.batch_norm_eval(x, (mean, var), weight, bias, 1e-5, act=activation("silu"))
        return torch.autograd.grad(y, x, grad)[0]

    expected = gradient()
    monkeypatch.setitem(registry._KERNELS, "numba", replace(before, frozen=None))
    torch.testing.assert_close(gradient(), expected)

"""The closed forms against torch's automatic differentiation in float64."""

import array_api_compat.torch as xp
import numpy as np
import pytest
import torch

from bnkit.core import (
    Gradients,
    Normalized,
    blended_backward,
    invstd,
    moments,
    normalize_backward,
    normalize_double_backward,
    normalize_eval_backward,
    normalize_jvp,
)

EPS = 1e-2
AXES = (0, 2)


def values(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def forward(x, weight, bias, w):
    """y by differentiable operations, weights w."""
    count = w.sum(AXES, keepdim=True)
    mean = (w * x).sum(AXES, keepdim=True) / count
    var = (w * (x - mean).square()).sum(AXES, keepdim=True) / count
    return (x - mean) * (var + EPS).rsqrt() * weight + bias


def setup(weighted):
    x, weight, bias, g = values(5, 3, 4), values(1, 3, 1), values(1, 3, 1), values(5, 3, 4)
    w = torch.rand(5, 1, 4, dtype=torch.float64) if weighted else torch.ones(5, 1, 4).double()
    w = w.broadcast_to(x.shape)
    m = moments(x, AXES, w if weighted else None, xp=xp)
    s = invstd(xp, m.var(), EPS).reshape(1, 3, 1)
    count = m.count.reshape(1, 3, 1) if weighted else m.count
    xhat = (x - m.mean.reshape(1, 3, 1)) * s
    at = Normalized(xhat, s, weight, AXES, count, w if weighted else None)
    return x, weight, bias, w, g, at


def close(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_backward(weighted):
    x, weight, bias, w, g, at = setup(weighted)
    leaves = [v.requires_grad_() for v in (x, weight, bias)]
    expected = torch.autograd.grad(forward(*leaves, w), leaves, g)
    close(normalize_backward(xp, at, g), expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_forward_mode(weighted):
    x, weight, bias, w, _, at = setup(weighted)
    tangents = values(5, 3, 4), values(1, 3, 1), values(1, 3, 1)
    expected = torch.func.jvp(lambda *p: forward(*p, w), (x, weight, bias), tangents)[1]
    close([normalize_jvp(xp, at, *tangents)], [expected])


@pytest.mark.parametrize("weighted", [False, True])
def test_double_backward(weighted):
    x, weight, bias, w, g, at = setup(weighted)
    leaves = [v.requires_grad_() for v in (x, weight, bias)]
    g.requires_grad_()
    grads = torch.autograd.grad(forward(*leaves, w), leaves, g, create_graph=True)
    cotangents = Gradients(values(5, 3, 4), values(1, 3, 1), values(1, 3, 1))
    expected = torch.autograd.grad(grads, [g, weight, x], cotangents)
    with torch.no_grad():
        close(normalize_double_backward(xp, at, g, cotangents), expected)


def test_double_backward_in_numpy():
    *_, g, at = setup(weighted=False)
    arrays = Normalized(at.xhat.numpy(), at.invstd.numpy(), at.weight.numpy(), AXES, at.count)
    cotangents = Gradients(values(5, 3, 4), values(1, 3, 1), values(1, 3, 1))
    from array_api_compat import numpy as npx

    got = normalize_double_backward(
        npx, arrays, g.numpy(), Gradients(*(c.numpy() for c in cotangents))
    )
    for a, b in zip(got, normalize_double_backward(xp, at, g, cotangents), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_statistics_that_are_partly_constant(share):
    x, weight, bias, _, g, _ = setup(weighted=False)
    mean0, var0 = values(1, 3, 1), values(1, 3, 1).abs() + 1

    def blended(x, weight, bias):
        mean = x.mean(AXES, keepdim=True)
        var = (x - mean).square().mean(AXES, keepdim=True)
        mean, var = (share * a + (1 - share) * b for a, b in ((mean, mean0), (var, var0)))
        return (x - mean) * (var + EPS).rsqrt() * weight + bias

    leaves = [v.requires_grad_() for v in (x, weight, bias)]
    expected = torch.autograd.grad(blended(*leaves), leaves, g)
    with torch.no_grad():
        batch = moments(x, AXES, xp=xp)
        mean = share * batch.mean.reshape(1, 3, 1) + (1 - share) * mean0
        s = invstd(xp, share * batch.var().reshape(1, 3, 1) + (1 - share) * var0, EPS)
        at = Normalized((x - mean) * s, s, weight, AXES, batch.count)
        batch_xhat = (x - batch.mean.reshape(1, 3, 1)) * s
        close(blended_backward(xp, at, g, batch_xhat, share), expected)
        if share == 0:
            close(normalize_eval_backward(xp, at, g), expected)

"""Whitening batch norm against its definition: identity covariance, gradients, conversions."""

import copy

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import (
    ConversionError,
    EmptyBatchWarning,
    InputError,
    NonFiniteError,
    NonFiniteWarning,
    SpecError,
)
from bnkit.nn import WhitenedBatchNorm1d, WhitenedBatchNorm2d, WhitenedBatchNorm3d
from bnkit.ops.whitening import whitening_matrix
from tests.tolerances import FLOAT64

KINDS = {1: (WhitenedBatchNorm1d, (12, 6, 5)), 2: (WhitenedBatchNorm2d, (8, 6, 3, 4)),
         3: (WhitenedBatchNorm3d, (6, 6, 2, 3, 2))}  # fmt: skip
METHODS = pytest.mark.parametrize("method", ["zca", "newton"])
each = pytest.mark.parametrize("dimension", KINDS)


def correlated(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64) + torch.eye(6)
    return (torch.einsum("ij,nj...->ni...", mixing, x) * 3 + 10).to(dtype)


def values(x):
    return x.transpose(0, 1).flatten(1)


def covariance(x, groups):
    return torch.stack(
        [part.cov(correction=0).reshape(len(part), -1) for part in values(x).chunk(groups)]
    )


@each
@METHODS
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_output_has_the_identity_as_covariance(dimension, method, groups):
    cls, shape = KINDS[dimension]
    x = correlated(shape)
    layer = cls(6, eps=1e-12, groups=groups, method=method, iterations=40).double()
    y = layer(x)
    assert values(y).mean(1).abs().max() < 1e-9
    eye = torch.eye(6 // groups, dtype=torch.float64).expand(groups, -1, -1)
    torch.testing.assert_close(covariance(y, groups), eye, atol=1e-7, rtol=0)
    assert groups == 6 or (covariance(x, groups) - eye).abs().max() > 1


def test_five_iterations_bring_it_nearer():
    x = correlated((200, 6))
    off = []
    for iterations in (1, 5, 9):
        y = WhitenedBatchNorm1d(6, iterations=iterations).double()(x)
        off.append(float((covariance(y.detach(), 1)[0] - torch.eye(6)).norm()))
    assert off[0] > off[1] > off[2]


@each
@METHODS
def test_groups_of_one_channel_are_plain_batch_norm(dimension, method):
    cls, shape = KINDS[dimension]
    layer = cls(6, groups=6, method=method).double()
    plain = getattr(bnkit.nn, f"BatchNorm{dimension}d")(6).double()
    with torch.no_grad():
        for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
            p.copy_(q.uniform_(0.5, 2))
    a, b = correlated(shape).requires_grad_(), correlated(shape).requires_grad_()
    y, z = layer(a), plain(b)
    torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-10)
    y.pow(3).sum().backward(), z.pow(3).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(layer.running_mean, plain.running_mean, rtol=FLOAT64, atol=FLOAT64)


def by_definition(x, weight, bias, method, iterations=5):
    """One group, by autograd through the definition."""
    v = values(x)
    deviations = v - v.mean(1, keepdim=True)
    s = deviations @ deviations.T / v.shape[1] + 1e-5 * torch.eye(len(v), dtype=v.dtype)
    if method == "zca":
        w, u = torch.linalg.eigh(s)
        matrix = u @ torch.diag(w**-0.5) @ u.T
    else:
        p = torch.eye(len(v), dtype=v.dtype)
        for _ in range(iterations):
            p = (3 * p - p @ p @ p @ (s / s.trace())) / 2
        matrix = p / s.trace().sqrt()
    y = (matrix @ deviations).reshape(x.transpose(0, 1).shape).transpose(0, 1)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return y * weight.reshape(shape) + bias.reshape(shape)


@each
@METHODS
def test_value_and_gradient_are_those_of_the_definition(dimension, method):
    cls, shape = KINDS[dimension]
    layer = cls(6, method=method).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2), layer.bias.normal_()
    a, b = correlated(shape).requires_grad_(), correlated(shape).requires_grad_()
    y, z = layer(a), by_definition(b, layer.weight, layer.bias, method)
    torch.testing.assert_close(y, z, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad(y.pow(3).sum(), [a, *layer.parameters()])
    theirs = torch.autograd.grad(z.pow(3).sum(), [b, *layer.parameters()])
    for g, h in zip(ours, theirs, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-7, atol=1e-7)


def test_equal_eigenvalues_have_a_gradient():
    """Autograd through the eigenvectors gives NaN there."""
    s = torch.eye(4, dtype=torch.float64).unsqueeze(0).requires_grad_()
    w, u = torch.linalg.eigh(s)
    naive = torch.autograd.grad((u @ torch.diag_embed(w**-0.5) @ u.mT).square().sum(), s)[0]
    assert not naive.isfinite().all()
    ours = torch.autograd.grad(whitening_matrix(s, "zca", 5).square().sum(), s)[0]
    torch.testing.assert_close(ours, -torch.eye(4, dtype=torch.float64).unsqueeze(0))  # d tr S^-1


@METHODS
def test_derivatives_of_the_matrix(method):
    def run(half):
        return whitening_matrix(half @ half.mT + torch.eye(3, dtype=half.dtype), method, 6)

    half = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (half,))
    assert torch.autograd.gradgradcheck(run, (half,))


@METHODS
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_averages(method, momentum):
    layer = WhitenedBatchNorm1d(6, momentum=momentum, groups=2, method=method).double()
    mean, matrix = torch.zeros(6).double(), torch.eye(3).double().repeat(2, 1, 1)
    for step in range(1, 4):
        x = correlated((20, 6)) * step
        weight = 1 / step if momentum is None else momentum
        batch = covariance(x, 2) + 1e-5 * torch.eye(3)
        mean = (1 - weight) * mean + weight * x.mean(0)
        matrix = (1 - weight) * matrix + weight * whitening_matrix(batch, method, 5)
        layer(x)
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.running_whitening, matrix, rtol=1e-10, atol=1e-10)
    assert int(layer.num_batches_tracked) == 3
    y = layer.eval()(x)
    whole = torch.block_diag(*matrix)
    torch.testing.assert_close(y, (x - mean) @ whole.T, rtol=1e-9, atol=1e-9)


@each
def test_from_and_to_plain(dimension):
    cls, shape = KINDS[dimension]
    x = correlated(shape)
    for norm in (
        getattr(nn, f"BatchNorm{dimension}d")(6),
        getattr(bnkit.nn, f"BatchNorm{dimension}d")(6),
    ):
        norm.double()(x)
        norm.eval()
        layer = cls.from_batch_norm(norm, groups=2)
        torch.testing.assert_close(layer(x), norm(x), rtol=1e-10, atol=1e-10)
        back = layer.to_batch_norm()
        assert type(back) is cls.plain_class
        torch.testing.assert_close(back(x), norm(x), rtol=1e-10, atol=1e-10)
        for p, q in zip(norm.state_dict().values(), back.state_dict().values(), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-9)
    layer.train()(x)
    with pytest.raises(ConversionError, match=r"to_batch_norm: .* mixes channels"):
        layer.to_batch_norm()
    with pytest.raises(ConversionError, match="with running statistics, got Linear"):
        cls.from_batch_norm(nn.Linear(2, 2))
    with pytest.raises(ConversionError, match="without them"):
        cls.from_batch_norm(type(norm)(6, track_running_stats=False))
    with pytest.raises(ConversionError, match="no running statistics"):
        cls(6, track_running_stats=False).to_batch_norm()


@METHODS
def test_policies(method):
    x = correlated((30, 6), torch.float32)
    layer = WhitenedBatchNorm1d(6, method=method)
    before = {k: v.clone() for k, v in layer.state_dict().items()}

    def unchanged():
        return all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())

    with bnkit.nn.no_update(layer):
        layer(x)
    assert unchanged()
    with bnkit.nn.rollback(layer):
        layer(x)
        assert not unchanged()
    assert unchanged()
    bnkit.nn.freeze_(layer)
    layer.train()
    torch.testing.assert_close(layer(x), x)
    assert unchanged()
    bnkit.nn.unfreeze_(layer)
    assert bnkit.nn.policy(layer)[""].normalizes_with == "batch"
    layer(x)
    assert not unchanged()


def test_what_does_not_count():
    layer = WhitenedBatchNorm1d(6)
    x = correlated((30, 6), torch.float32)
    layer(x)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    bad = x.clone()
    bad[3, 2] = float("inf")
    with pytest.warns(NonFiniteWarning, match="NaN or infinity in a batch"):
        layer(bad)
    layer(bad)
    with pytest.warns(EmptyBatchWarning):
        assert layer(x[:0]).shape == (0, 6)
    for k, v in layer.state_dict().items():
        assert torch.equal(v, before[k])
    layer.on_nonfinite = "raise"
    with pytest.raises(NonFiniteError):
        layer(bad)
    layer.on_nonfinite = "propagate"
    layer(bad)
    assert not layer.running_whitening.isfinite().all()


@METHODS
def test_transforms(method):
    layer = WhitenedBatchNorm1d(6, method=method).double()
    twin, x = copy.deepcopy(layer), correlated((20, 6))
    got = torch.func.grad(lambda v: layer(v).pow(3).sum())(x)
    a = x.clone().requires_grad_()
    twin(a).pow(3).sum().backward()
    torch.testing.assert_close(got, a.grad)
    for p, q in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(p, q)
    members = [copy.deepcopy(twin) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(members)

    def call(p, b, v):
        return torch.func.functional_call(twin, (p, b), (v,))

    y = torch.func.vmap(call)(parameters, buffers, torch.stack([x, 2 * x + 1]))
    for i, member in enumerate(members):
        torch.testing.assert_close(y[i], member(x if i == 0 else 2 * x + 1))
        torch.testing.assert_close(buffers["running_whitening"][i], member.running_whitening)
    each = torch.func.vmap(twin.eval())(torch.stack([x, x + 1]))
    torch.testing.assert_close(each[1], twin(x + 1))


def test_autocast_keeps_the_covariance_wide():
    x = correlated((200, 6), torch.float32)
    layer = WhitenedBatchNorm1d(6)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)
        assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_what_is_refused():
    model = nn.Sequential(WhitenedBatchNorm1d(6, groups=2))
    with pytest.raises(
        InputError,
        match=r"'0' \(WhitenedBatchNorm1d\): expected more than 3 values per channel, .* got 3",
    ):
        model(torch.randn(3, 6))
    assert model(torch.randn(4, 6)).isfinite().all()
    for bad in (torch.randn(4, 5), torch.randn(4, 6, 2, 2), torch.ones(4, 6, dtype=torch.long),
                torch.randn(8, 6, dtype=torch.complex64)):  # fmt: skip
        with pytest.raises(InputError, match="WhitenedBatchNorm1d"):
            model(bad)
    with pytest.raises(SpecError, match="WhitenedBatchNorm2d: groups must be"):
        WhitenedBatchNorm2d(6, groups=4)
    with pytest.raises(InputError, match="on_nonfinite"):
        WhitenedBatchNorm2d(6, on_nonfinite="no")
    with pytest.raises(InputError, match="eps must be positive"):
        WhitenedBatchNorm1d(6, eps=0)(torch.randn(30, 6))
    with (
        pytest.raises(ConversionError, match="averaged batch by batch"),
        bnkit.nn.accumulate(model),
    ):
        pass
    assert bnkit.nn.plain_(model).kept
    assert "0" in bnkit.nn.ghost_(model, 2).kept

"""Ghost batch norm and batch renormalization against torch, group by group and step by step."""

import copy

import pytest
import torch
import torch.nn.functional as F

import bnkit
from bnkit import ops
from bnkit.core import RenormLimits, RenormSchedule, ghost_slices
from tests.tolerances import FLOAT64

SHAPES = {1: (12, 3), 2: (12, 3, 4, 2), 3: (12, 3, 2, 2, 3)}
GROUPS = ["contiguous", "strided"]
# small batches are folded into channels, large ones are normalized part by part
SIZES = {"small": (12, 3, 4, 2), "large": (6, 4, 120, 120)}


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def ghost(d, size, **options):
    layer = getattr(bnkit.nn, f"GhostBatchNorm{d}d")
    made = layer(3, dtype=torch.float64, virtual_batch_size=size, **options)
    with torch.no_grad():
        made.weight.uniform_(0.5, 1.5), made.bias.uniform_(-1, 1)
    return made


def by_group(x, slices, weight, bias, eps=1e-5):
    y = torch.empty_like(x)
    for s in slices:
        y[s] = F.batch_norm(x[s], None, None, weight, bias, training=True, eps=eps)
    return y


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize(("size", "remainder"), [(4, "error"), (5, "smaller"), (5, "plain")])
def test_each_group_is_a_batch_norm(d, groups, size, remainder):
    layer = ghost(d, size, groups=groups, remainder=remainder)
    x = (torch.randn(SHAPES[d], dtype=torch.float64) * 3 + 2).requires_grad_()
    y = layer(x)
    slices = ghost_slices(12, size, groups=groups, remainder=remainder)
    expected = by_group(x, slices, layer.weight, layer.bias)
    close(y, expected)
    inputs = [x, layer.weight, layer.bias]
    cotangent = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        close(a, b)


@pytest.mark.parametrize("shape", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("virtual_batch_size", [2, 3, 4])
def test_both_ways_of_computing_groups(shape, groups, memory_format, virtual_batch_size):
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    slices = ghost_slices(shape[0], virtual_batch_size, groups=groups, remainder="smaller")
    weight, bias = torch.randn(2, shape[1])
    y, found = ops.ghost_batch_norm_train(x, weight, bias, 1e-5, slices=slices)
    assert y.is_contiguous(memory_format=memory_format)
    close(y, by_group(x, slices, weight, bias), 2e-5)
    again = ops.ghost_moments(x, slices)
    for batch, other, s in zip(found, again, slices, strict=True):
        dims = (0, 2, 3)
        assert batch.count == other.count == x[s].numel() // x.shape[1]
        close(batch.mean, x[s].mean(dims), 1e-5)
        close(batch.var(1), x[s].var(dims), 1e-5)
        # those that are merged with others come in double precision
        assert other.mean.dtype == torch.float64
        close(other.mean.float(), batch.mean, 1e-6)
        close(other.m2.float(), batch.m2, 1e-3 if x.numel() > 1e5 else 1e-5)


@pytest.mark.parametrize("groups", GROUPS)
def test_one_group_is_plain_batch_norm(groups):
    layer = ghost(2, 12, groups=groups)
    plain = bnkit.nn.BatchNorm2d(3, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(SHAPES[2], dtype=torch.float64)
    for _ in range(2):
        close(layer(x), plain(x), 0)
    for key, value in plain.state_dict().items():
        close(layer.state_dict()[key], value, FLOAT64)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("running", ["mean", "sequential", "total"])
def test_running_statistics(groups, momentum, running):
    layer = ghost(2, 4, groups=groups, momentum=momentum, running=running)
    mean, var, t = torch.zeros(3).double(), torch.ones(3).double(), 0
    for _ in range(2):
        x = torch.randn(SHAPES[2], dtype=torch.float64) * 3 + 2
        layer(x)
        parts = [x[s] for s in ghost_slices(12, 4, groups=groups)]
        pairs = [(p.mean((0, 2, 3)), p.var((0, 2, 3))) for p in parts]
        if running == "mean":
            pairs = [tuple(sum(v) / 3 for v in zip(*pairs, strict=True))]
        elif running == "total":
            pairs = [(x.mean((0, 2, 3)), x.var((0, 2, 3)))]
        for m, v in pairs:
            t += 1
            w = 1 / t if momentum is None else momentum
            mean, var = (1 - w) * mean + w * m, (1 - w) * var + w * v
    close(layer.running_mean, mean)
    close(layer.running_var, var)
    assert int(layer.num_batches_tracked) == t


def test_ghost_gradients_of_second_order():
    layer = ghost(1, 4, groups="strided")
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_inference_takes_any_batch():
    layer = ghost(1, 4).eval()
    assert layer(torch.randn(5, 3, dtype=torch.float64)).shape == (5, 3)
    untracked = ghost(1, 4, track_running_stats=False)
    x = torch.randn(5, 3, dtype=torch.float64)
    close(untracked.eval()(x), F.batch_norm(x, None, None, untracked.weight, untracked.bias, True))


def renorm(d=2, **options):
    layer = getattr(bnkit.nn, f"BatchRenorm{d}d")(3, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5), layer.bias.uniform_(-1, 1)
    return layer


@pytest.mark.parametrize("rule", ["plain", "debiased"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_gradients_treat_r_and_d_as_constants(rule, d):
    limits = RenormLimits(rmin=0.9, rmax=1.2, dmax=0.5)
    layer = renorm(d, momentum=0.2, limits=limits, rule=rule)
    dims = (0, *range(2, d + 2)) if d > 1 else (0,)
    kept = [1 if a in dims else -1 for a in range(len(SHAPES[d]))]
    for step in range(3):
        x = torch.randn(SHAPES[d], dtype=torch.float64) * (1 + step) + step
        mean, s = x.mean(dims), torch.sqrt(x.var(dims, correction=0) + layer.eps)
        if rule == "plain":
            reference = layer.renorm_mean, layer.renorm_stddev.clamp(min=layer.eps**0.5)
        else:
            lack = 1 - layer.renorm_weight
            reference = layer.renorm_mean + lack * mean, layer.renorm_stddev + lack * s
        r = (s / reference[1]).clamp(0.9, 1.2).reshape(kept)
        shift = ((mean - reference[0]) / reference[1]).clamp(-0.5, 0.5).reshape(kept)
        x.requires_grad_()
        xhat = F.batch_norm(x, None, None, training=True)
        expected = (xhat * r + shift) * layer.weight.reshape(kept) + layer.bias.reshape(kept)
        inputs = [x, layer.weight, layer.bias]
        cotangent = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, inputs, cotangent)
        y = layer(x)
        close(y, expected)
        for a, b in zip(torch.autograd.grad(y, inputs, cotangent), wanted, strict=True):
            close(a, b)
    assert (r != 1).any()
    assert (shift != 0).any()


def test_r_of_1_and_d_of_0_is_plain_batch_norm():
    layer = renorm(limits=RenormLimits(rmin=1, rmax=1, dmax=0))
    x = torch.randn(SHAPES[2], dtype=torch.float64) * 3 + 2
    for _ in range(2):
        expected = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)
        close(layer(x), expected)
    assert torch.autograd.gradcheck(layer, (x[:2].clone().requires_grad_(),))


def test_the_schedule_follows_the_counter():
    schedule = RenormSchedule(rmax=3, dmax=5, start=2, rmax_end=4, dmax_end=4)
    layer = renorm(momentum=0.5, limits=schedule)
    twin = copy.deepcopy(layer)
    x = torch.randn(SHAPES[2], dtype=torch.float64) * 100 + 300
    for t, (rmax, dmax) in enumerate([(1, 0), (1, 0), (1, 0), (2, 2.5), (3, 5), (3, 5)]):
        assert int(layer.num_batches_tracked) == t
        twin.load_state_dict(layer.state_dict())
        twin.renorm = bnkit.nn.BatchRenorm2d(
            3, limits=RenormLimits(rmin=1 / rmax, rmax=rmax, dmax=dmax), momentum=0.5
        ).renorm
        close(layer(x), twin(x), 0)


def test_cumulative_average():
    layer = renorm(momentum=None, limits=RenormLimits())
    xs = [torch.randn(SHAPES[2], dtype=torch.float64) * k + k for k in (1, 2, 3)]
    for x in xs:
        layer(x)
    close(layer.running_mean, torch.stack([x.mean((0, 2, 3)) for x in xs]).mean(0))
    stddevs = [torch.sqrt(x.var((0, 2, 3), correction=0) + layer.eps) for x in xs]
    close(layer.renorm_stddev, torch.stack(stddevs).mean(0))


@pytest.mark.parametrize("renorm_momentum", [None, 0.3])
def test_the_reference_follows_a_momentum_that_is_set_later(renorm_momentum):
    layer = renorm(momentum=0.1, limits=RenormLimits(), renorm_momentum=renorm_momentum)
    layer.momentum = 0.5
    x = torch.randn(SHAPES[2], dtype=torch.float64)
    layer(x)
    mean = x.mean((0, 2, 3))
    close(layer.running_mean, 0.5 * mean)
    close(layer.renorm_mean, (renorm_momentum or 0.5) * mean)


@pytest.mark.parametrize("rule", ["plain", "debiased"])
def test_a_plain_checkpoint_starts_the_reference(rule):
    plain = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    for _ in range(4):
        plain(torch.randn(SHAPES[2], dtype=torch.float64) * 2 + 1)
    layer = renorm(limits=RenormLimits(), rule=rule)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(SHAPES[2], dtype=torch.float64)
    close(layer(x), plain.eval()(x))  # without bounds, training is inference
    torch.nn.BatchNorm2d(3, dtype=torch.float64).load_state_dict(layer.state_dict(), strict=False)


def test_large_mean_in_float32():
    x = torch.randn(64, 3, 8, 8) + 1e4
    layer = bnkit.nn.BatchRenorm2d(3, momentum=1.0, limits=RenormLimits(rmin=1, rmax=1, dmax=0))
    y = layer(x)
    expected = F.batch_norm(x.double(), None, None, training=True)
    # the mean is stored in float32: half of its last digit is what y may be off
    close(y.double(), expected, 1e-3)
    close(layer.running_var.double(), x.double().var((0, 2, 3), correction=0), 1e-4)

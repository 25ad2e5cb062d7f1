"""The Triton kernels against the float64 reference: on a GPU, or in Triton's interpreter."""

import os
from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"):
    pytest.skip(
        "no GPU; test_triton.py runs these in a process with TRITON_INTERPRET=1",
        allow_module_level=True,
    )

import triton
import triton.language as tl

import bnkit
from bnkit import ops
from bnkit.core import Moments, merge
from bnkit.ops import Activation, KernelUnavailableError, explain, use_kernel
from bnkit.ops.kernels import reference, triton_gpu
from bnkit.ops.kernels.triton_config import Tile
from bnkit.ops.kernels.triton_gpu import TRITON
from bnkit.ops.kernels.triton_tiles import locate
from bnkit.ops.registry import Affine
from tests.tolerances import VARIANCE_LARGE_MEAN, dtype_tolerance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS = [
    Activation(),
    Activation("relu"),
    Activation("relu6"),
    Activation("leaky_relu", 0.1),
    Activation("silu"),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _forced_on_poisoned_memory():
    """Deterministic mode fills new tensors with NaN: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with use_kernel("triton"):
        yield
    torch.use_deterministic_algorithms(before)


def placed(x, last):
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def inputs(shape, dtype=torch.float32, *, last=False, mean=0.0):
    g = torch.Generator().manual_seed(sum(shape))
    x, residual, grad = (
        placed((torch.randn(shape, generator=g) + m).to(DEVICE, dtype), last)
        for m in (mean, 0.0, 0.0)
    )
    weight, bias = torch.randn(2, shape[1], generator=g).to(DEVICE, dtype)
    return x, residual, grad, weight, bias


def exact(affine):
    weight, bias, residual = (
        None if t is None else t.double() for t in (affine.weight, affine.bias, affine.residual)
    )
    return affine._replace(weight=weight, bias=bias, residual=residual)


def kept_off_the_corner(x, grad, affine):
    """No gradient where rounding decides the side of a ReLU."""
    z = reference.train(x.double(), exact(affine)._replace(act=Activation())).y
    return torch.where(z.abs() < 1e-3, torch.zeros_like(grad), grad)


def close(got, expected, tolerance, scale=1.0):
    scale = max(scale, expected.abs().max().item())
    assert got.isfinite().all()
    assert (got.double() - expected).abs().max().item() <= tolerance * scale


def judge(x, grad, affine):
    """Every result against the reference in float64, given the same input."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    narrow = dtype_tolerance(str(x.dtype).removeprefix("torch."))
    fine = dtype_tolerance(str(wide).removeprefix("torch."))
    assert TRITON.refuses(x, affine.residual) is None
    y, (mean, m2) = TRITON.train(x, affine)
    y64, (mean64, m264) = reference.train(x.double(), exact(affine))
    assert (y.dtype, mean.dtype, m2.dtype) == (x.dtype, wide, wide)
    assert y.stride() == x.stride()
    close(y, y64, narrow)
    close(mean, mean64, fine)
    close(m2, m264, fine)
    grad = placed(kept_off_the_corner(x, grad, affine), not x.is_contiguous())
    g = TRITON.backward(grad, x, affine, mean, m2)
    g64 = reference.backward(grad.double(), x.double(), exact(affine), mean64, m264)
    n = x.numel() / x.shape[1]
    close(g.x, g64.x, narrow)
    # a sum of n terms of order 1 has the size of sqrt(n)
    close(g.weight, g64.weight, fine, n**0.5)
    close(g.bias, g64.bias, fine, n**0.5)
    assert (g.residual is None) == (affine.residual is None)
    if affine.residual is not None:
        assert g.residual.dtype == affine.residual.dtype
        close(g.residual, g64.residual, narrow)
    var = torch.rand(x.shape[1], dtype=wide).to(DEVICE) + 0.5
    e64 = reference.evaluate(x.double(), mean64, var.double(), exact(affine))
    close(TRITON.evaluate(x, mean, var, affine), e64, narrow)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(7, 3), (4, 5, 6, 7), (3, 17, 1, 1), (2, 3, 3, 2, 7)], ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda a: a.name)
def test_against_the_reference(shape, act, last):
    x, residual, grad, weight, bias = inputs(shape, last=last)
    judge(x, grad, Affine(weight, bias, 1e-5, residual, act))
    judge(x, grad, Affine(None, bias, 1e-3, None, act))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, last):
    x, residual, grad, weight, bias = inputs((5, 20, 3, 7), dtype, last=last)
    judge(x, grad, Affine(weight, bias, 1e-5, residual, Activation("silu")))
    judge(x, grad, Affine(weight, None, 1e-5, None, Activation("leaky_relu", 0.1)))


def test_wide_parameters_and_residual_with_a_narrow_input():
    x, _, grad, *_ = inputs((6, 5, 4, 4), torch.bfloat16)
    _, residual, _, weight, bias = inputs((6, 5, 4, 4), torch.float32)
    judge(x, grad, Affine(weight, bias, 1e-5, residual, Activation("relu")))


@pytest.mark.parametrize("channels", [1, 2, 31, 64, 65, 129, 1025])
@pytest.mark.parametrize("last", [False, True])
def test_channel_counts(channels, last):
    x, _, grad, weight, bias = inputs((3, channels, 2, 1), last=last)
    judge(x, grad, Affine(weight, bias, 1e-5))


@pytest.mark.parametrize(
    ("shape", "last"), [((3, 2, 101, 103), False), ((3, 2, 101, 103), True), ((20011, 3), False)]
)
def test_many_parts_with_a_tail(shape, last):
    x, residual, grad, weight, bias = inputs(shape, last=last)
    launch = triton_gpu.streaming(triton_gpu._shape(x), *triton_gpu._machine(x))
    assert launch.grid[1] > 1
    judge(x, grad, Affine(weight, bias, 1e-5, residual, Activation("relu")))


@pytest.mark.parametrize("mean", [30.0, 1e3, 1e4])
@pytest.mark.parametrize(
    ("shape", "last"), [((16, 8, 7, 7), False), ((2, 3, 64, 64), True), ((4096, 4), False)]
)
def test_large_means(shape, last, mean):
    x, *_ = inputs(shape, last=last, mean=mean)
    count, got, m2 = triton_gpu.moments(x)
    dims = (0, *range(2, x.ndim))
    # rounding the mean to float32 is all that is lost
    assert (got - x.double().mean(dims)).abs().max() <= 2**-24 * mean * 1.01
    var = x.double().var(dims, correction=0)
    assert count == x.numel() // x.shape[1]
    assert (m2 / count / var - 1).abs().max() < VARIANCE_LARGE_MEAN / 5
    y = TRITON.train(x, Affine(None, None, 1e-5)).y
    y64 = reference.train(x.double(), Affine(None, None, 1e-5)).y
    assert (y - y64).abs().max() < 2**-24 * (mean * 1.1 + 40)


def test_an_outlier_as_the_first_value_costs_no_digits():
    x, *_ = inputs((16, 4, 20, 20))
    x[0, :, 0, 0] = 1e5
    count, mean, m2 = triton_gpu.moments(x)
    var = x.double().var((0, 2, 3), correction=0)
    assert (m2 / count / var - 1).abs().max() < 2e-6
    assert ((mean - x.double().mean((0, 2, 3))).abs() / var.sqrt()).max() < 1e-5


def test_moments_of_two_batches_merge():
    x, *_ = inputs((9, 6, 5, 3), mean=100.0)
    count, mean, m2 = merge(triton_gpu.moments(x[:2]), triton_gpu.moments(x[2:]))
    whole = triton_gpu.moments(x)
    assert isinstance(whole, Moments)
    assert count == whole.count == 9 * 15
    torch.testing.assert_close(mean, whole.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(m2, whole.m2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda a: a.name)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_not_finite_shows(value, act):
    x, *_ = inputs((4, 2, 3, 3))
    x[1, 0, 1, 1] = value
    y, (mean, m2) = TRITON.train(x, Affine(None, None, 1e-5, None, act))
    assert y[:, 0].isnan().all()
    assert not mean[0].isfinite()
    assert not m2[0].isfinite()
    assert y[:, 1].isfinite().all()


def test_a_gradient_that_lies_otherwise():
    x, _, grad, weight, bias = inputs((4, 5, 3, 3), last=True)
    affine = Affine(weight, bias, 1e-5)
    _, (mean, m2) = TRITON.train(x, affine)
    expected = TRITON.backward(grad, x, affine, mean, m2)
    got = TRITON.backward(grad.contiguous(), x, affine, mean, m2)
    assert torch.equal(got.x, expected.x)
    ones = torch.ones((), device=DEVICE).expand(x.shape)  # as from y.sum().backward()
    assert torch.equal(TRITON.backward(ones, x, affine, mean, m2).bias, torch.full_like(mean, 36))


def test_run_to_run():
    x, residual, grad, weight, bias = inputs((5, 3, 40, 41))
    affine = Affine(weight, bias, 1e-5, residual, Activation("silu"))
    first, second = TRITON.train(x, affine), TRITON.train(x, affine)
    assert torch.equal(first.y, second.y)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.m2, second.m2)
    pair = [TRITON.backward(grad, x, affine, first.mean, first.m2) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def test_through_the_operators():
    x, residual, grad, weight, bias = inputs((6, 7, 5, 3))
    affine = Affine(weight, bias, 1e-5, residual, Activation("silu"))
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, residual)]
    y, batch = ops.batch_norm_train(*leaves[:3], 1e-5, residual=leaves[3], act=affine.act)
    y.backward(grad)
    found = TRITON.train(x, affine)
    assert torch.equal(y, found.y)
    assert torch.equal(batch.mean, found.mean)
    g = TRITON.backward(grad, x, affine, found.mean, found.m2)
    for leaf, expected in zip(leaves, g, strict=True):
        assert torch.equal(leaf.grad, expected)
    wide = [t.double().requires_grad_() for t in (x, weight, bias, residual)]
    with use_kernel("reference"):
        y64, _ = ops.batch_norm_train(*wide[:3], 1e-5, residual=wide[3], act=affine.act)
        y64.backward(grad.double())
    for leaf, truth in zip(leaves, wide, strict=True):
        close(leaf.grad, truth.grad, 20 * dtype_tolerance("float32"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_as_a_layer(memory_format):
    x, _, grad, *_ = inputs((6, 7, 5, 3), mean=2.0)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    wide = x.detach().double().requires_grad_()
    ours = bnkit.nn.BatchNorm2d(7).to(DEVICE)
    theirs = torch.nn.BatchNorm2d(7).double().to(DEVICE)
    with use_kernel("triton"):
        y = ours(x)
    y64 = theirs(wide)
    y.backward(grad)
    y64.backward(grad.double())
    tolerance = dtype_tolerance("float32")
    close(y, y64, tolerance)
    close(x.grad, wide.grad, tolerance)
    close(ours.weight.grad, theirs.weight.grad, tolerance)
    close(ours.bias.grad, theirs.bias.grad, tolerance)
    close(ours.running_mean, theirs.running_mean, tolerance)
    close(ours.running_var, theirs.running_var, tolerance)
    with torch.no_grad():
        close(ours.eval()(x), theirs.eval()(wide), tolerance)


def test_explains_what_it_refuses():
    reasons = {
        "it has no code for torch.complex64": torch.zeros(2, 3, dtype=torch.complex64),
        "x of 1 dimensions has no channels": torch.zeros(3),
        "x is empty": torch.zeros(0, 3),
        "x is neither contiguous nor channels-last (strides (1, 4))": torch.zeros(3, 4).T,
    }
    for reason, x in reasons.items():
        assert TRITON.refuses(x.to(DEVICE)) == reason
    x = torch.zeros(2, 3, 4, 4, device=DEVICE)
    other = placed(x, last=True)
    assert TRITON.refuses(x, other) == "the residual does not lie in memory as x does"
    assert TRITON.refuses(x, x.int()) == "it has no code for a residual of torch.int32"
    with pytest.raises(KernelUnavailableError, match="residual does not lie"):
        ops.batch_norm_train(x, None, None, 1e-5, residual=other)


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU it is taken without being forced")
def test_the_interpreter_runs_only_when_forced():
    x = torch.zeros(2, 3, 4, 4)
    assert [c.name for c in explain(x).candidates if c.taken] == ["triton"]
    with use_kernel("numba"):
        assert TRITON.refuses(x) == "it runs on CUDA, x is on cpu"


@triton.jit
def _locate_kernel(offsets, shape, t, fixed: tl.constexpr):
    channel = tl.arange(0, fixed.channels)
    offset, inside = locate(t, channel, shape, fixed)
    at = tl.arange(0, fixed.planes * fixed.span)[:, None] * fixed.channels + channel[None, :]
    tl.store(offsets + at, tl.where(inside, offset, -1))


def test_offsets_beyond_32_bits():
    found = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    # tile 3 * 2**19 of (3, 2**11, 2**20), two planes wide: the last plane, and past the end
    _locate_kernel[(1,)](found, (3, 2**11, 2**20), 2**19, Tile(2, 2, 1))
    assert found.tolist() == [2 * 2**31, 2 * 2**31 + 1, -1, -1]

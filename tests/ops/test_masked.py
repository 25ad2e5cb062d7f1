"""The kernel that knows masks: what it gives is batch norm of the kept values, in float64."""

import pytest
import torch

from bnkit import ops
from bnkit.ops.kernels import masked_cpu
from tests.tolerances import dtype_tolerance, relative_error

NHWC = torch.channels_last
SHAPES = [
    ((7, 3), None),
    ((300, 40), None),
    ((4, 5, 6), None),
    ((3, 33, 2500), None),
    ((20, 4, 7, 7), None),
    ((20, 4, 7, 7), NHWC),
    ((9, 70, 11, 13), NHWC),
    ((2, 3, 3, 4, 5), torch.channels_last_3d),
]


def values(*shape, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator) * 2 + mean


def places(shape):
    """Number of each position within its sample, and of the samples."""
    s = max(torch.Size(shape[2:]).numel(), 1)
    return torch.arange(s).expand(shape[0], s), torch.arange(shape[0])[:, None], s


def at_the_end(shape):
    place, sample, s = places(shape)
    return place < (s * (sample + 1) / shape[0]).ceil() if s > 1 else sample < shape[0] // 2


def at_both_ends(shape):
    place, sample, s = places(shape)
    kept = (place >= s // 3) & (place < s - s // 4)
    return kept & (sample % 3 > 0) if s > 2 else (sample > 1)


def anywhere(shape):
    place, sample, _ = places(shape)
    return (place * 7 + sample * 5) % 3 > 0


def samples(shape):
    place, sample, _ = places(shape)
    return (sample % 2 > 0) & (place >= 0)


MASKS = {f.__name__: f for f in (at_the_end, at_both_ends, anywhere, samples)}


def mask_of(shape, name):
    mask = MASKS[name](shape).reshape(shape[0], 1, *shape[2:]).contiguous()
    assert 1 < mask.sum() < mask.numel()
    return mask


def case(shape, layout, mask, dtype, mean=0.0):
    x, grad = values(*shape, mean=mean).to(dtype), values(*shape, seed=1).to(dtype)
    x, grad = torch.where(mask, x, torch.nan), torch.where(mask, grad, torch.nan)
    if layout is not None:
        x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    wide = torch.promote_types(dtype, torch.float32)
    return x, grad, values(shape[1], seed=2).to(wide), values(shape[1], seed=3).to(wide)


def run(x, weight, bias, mask, eps=1e-5):
    assert ops.takes_mask(x, weight, bias)
    kept = ops.Kept(mask, int(mask.sum()))
    return ops.batch_norm_masked(x, weight, bias, eps, kept)


def reference(x, grad, weight, bias, mask, eps=1e-5):
    """Output, moments and gradients of the formula, in float64, by automatic differentiation."""
    given = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    kept = mask.squeeze(1)
    v = given[0].movedim(1, -1)[kept]
    mean = v.mean(0)
    var = (v - mean).square().mean(0)
    y = (v - mean) / (var + eps).sqrt() * given[1] + given[2]
    out = torch.zeros_like(given[0])
    out.movedim(1, -1)[kept] = y
    by = torch.autograd.grad(out, given, torch.where(mask, grad.double(), 0))
    return out.detach(), mean.detach(), (var * len(v)).detach(), by


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("shape", "layout"), SHAPES)
def test_output_moments_and_gradients(shape, layout, name, dtype):
    mask = mask_of(shape, name)
    x, grad, weight, bias = case(shape, layout, mask, dtype)
    expected, mean, m2, by = reference(x, grad, weight, bias, mask)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y, batch = run(*leaves, mask)
    got = torch.autograd.grad(y, leaves, grad)
    bound = dtype_tolerance(str(dtype).removeprefix("torch."))
    assert y.dtype == got[0].dtype == dtype
    assert y.stride() == x.stride()
    assert batch.count == mask.sum()
    masked = ~mask.expand(shape)
    assert (y[masked] == 0).all()
    assert (got[0][masked] == 0).all()
    assert relative_error(y.detach().double(), expected) < 10 * bound
    narrow = 10 * dtype_tolerance("float64" if dtype == torch.float64 else "float32")
    assert relative_error(batch.mean.double(), mean) < narrow
    assert relative_error(batch.m2.double(), m2) < narrow
    for a, b in zip(got, by, strict=True):
        assert relative_error(a.double(), b) < 20 * bound


@pytest.mark.parametrize("layout", [None, NHWC])
@pytest.mark.parametrize("name", MASKS)
def test_a_mean_far_from_zero_and_a_constant_channel(name, layout):
    shape = (6, 17, 20, 30)
    mask = mask_of(shape, name)
    x, grad, weight, bias = case(shape, layout, mask, torch.float32, mean=1e4)
    x[:, 3] = 7.0
    expected, mean, m2, _ = reference(x, grad, weight, bias, mask)
    y, batch = run(x, weight, bias, mask)
    assert relative_error(batch.mean.double(), mean) < 1e-7
    live = torch.arange(shape[1]) != 3
    assert relative_error(batch.m2[live].double(), m2[live]) < 1e-5
    assert batch.m2[3] < 1e-6
    assert relative_error(y[:, live].double(), expected[:, live]) < 2e-3  # of x itself in float32


@pytest.mark.parametrize("layout", [None, NHWC])
@pytest.mark.parametrize("name", MASKS)
def test_threads_agree(name, layout):
    shape = (8, 24, 40, 30)
    mask = mask_of(shape, name)
    x, grad, weight, bias = case(shape, layout, mask, torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y, batch = run(*leaves, mask)
            found.append((y, *batch[1:], *torch.autograd.grad(y, leaves, grad)))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [None, NHWC])
def test_one_value_is_kept(layout):
    """The layer refuses it; the loops must not divide by what is not there."""
    mask = torch.zeros(3, 1, 2, 4, dtype=torch.bool)
    mask[2, 0, 1, 3] = True
    x, _, weight, bias = case((3, 5, 2, 4), layout, mask, torch.float64)
    y, batch = run(x, weight, bias, mask)
    torch.testing.assert_close(batch.mean, x[2, :, 1, 3])
    assert batch.m2.tolist() == [0] * 5
    torch.testing.assert_close(y[2, :, 1, 3], bias)


def test_a_gradient_without_strides_and_no_parameters():
    shape = (4, 3, 6)
    mask = mask_of(shape, "at_the_end")
    x = case(shape, None, mask, torch.float64)[0].requires_grad_()
    y, _ = run(x, None, None, mask)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.zeros(shape).double())


def test_several_gradients_at_once_and_second_derivatives():
    shape = (3, 2, 4)
    mask = mask_of(shape, "anywhere")
    _, _, weight, bias = case(shape, None, mask, torch.float64)
    leaves = [t.requires_grad_() for t in (values(*shape), weight, bias)]
    y, _ = run(*leaves, mask)
    grads = torch.eye(y.numel(), dtype=torch.float64).reshape(-1, *shape)
    stacked = torch.autograd.grad(y, leaves, grads, is_grads_batched=True, retain_graph=True)
    one = torch.autograd.grad(y, leaves, grads[0])
    for a, b in zip(stacked, one, strict=True):
        torch.testing.assert_close(a[0], b)
    assert torch.autograd.gradgradcheck(lambda *t: run(*t, mask)[0], leaves)


def test_what_it_does_not_take():
    x = torch.randn(4, 3, 6)
    assert ops.takes_mask(x, None, None)
    assert not ops.takes_mask(x[..., ::2], None, None)
    assert not ops.takes_mask(x.to(torch.complex64), None, None)
    assert not ops.takes_mask(x.to("meta"), None, None)
    with ops.use_kernel("reference"):
        assert not ops.takes_mask(x, None, None)
    with torch.autograd.forward_ad.dual_level():
        assert not ops.takes_mask(x, None, None)


@pytest.mark.parametrize(
    ("name", "layout", "kind"),
    [
        ("at_the_end", None, "hulls"),
        ("at_both_ends", None, "hulls"),
        ("anywhere", None, "holes"),
        ("anywhere", NHWC, "rows"),
    ],
)
def test_the_loops_that_a_mask_gets(name, layout, kind):
    shape = (6, 4, 5, 5)
    mask = mask_of(shape, name)
    x = case(shape, layout, mask, torch.float32)[0]
    assert masked_cpu.plan(x, ops.Kept(mask, int(mask.sum()))).kind == kind

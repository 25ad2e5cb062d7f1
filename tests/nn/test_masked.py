"""Masked and weighted batch norm: equal to the plain one on what is there."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import bnkit
from bnkit.core import EmptyBatchWarning, InputError
from bnkit.nn import MaskedBatchNorm1d, MaskedBatchNorm2d, MaskedBatchNorm3d
from tests.tolerances import FLOAT64, dtype_tolerance

LAYERS = {2: MaskedBatchNorm1d, 3: MaskedBatchNorm1d, 4: MaskedBatchNorm2d, 5: MaskedBatchNorm3d}
SHAPES = [(7, 3), (4, 3, 6), (4, 3, 5, 4), (3, 3, 2, 4, 3)]


def values(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return (2 * torch.randn(*shape, dtype=torch.float64, generator=generator) + 3).to(dtype)


def some(shape):
    mask = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(1)) > 0.4
    assert 1 < mask.sum() < mask.numel()
    return mask


def kept(x, mask):
    return x.movedim(1, -1)[mask]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channel", [False, True])
def test_equal_to_batch_norm_on_the_values_without_padding(shape, channel):
    mask, x, grad = some(shape), values(*shape), values(*shape).flip(0)
    layer, plain = LAYERS[len(shape)](3).double(), bnkit.nn.BatchNorm1d(3).double()
    with torch.no_grad():
        for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
            q.copy_(p.uniform_(0.5, 2.0))
    padded = torch.where(mask.unsqueeze(1), x, torch.nan).requires_grad_()
    packed = kept(x, mask).requires_grad_()
    for _ in range(2):
        y = layer(padded, mask.unsqueeze(1) if channel else mask)
        expected = plain(packed)
    torch.testing.assert_close(kept(y, mask), expected, rtol=FLOAT64, atol=FLOAT64)
    assert (kept(y, ~mask) == 0).all()
    assert y.is_contiguous()
    y.backward(grad)
    expected.backward(kept(grad, mask))
    torch.testing.assert_close(kept(padded.grad, mask), packed.grad, rtol=1e-9, atol=FLOAT64)
    assert (kept(padded.grad, ~mask) == 0).all()
    for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=FLOAT64)
    for p, q in zip(layer.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=FLOAT64, atol=FLOAT64)
    y, expected = layer.eval()(padded, mask), plain.eval()(packed)
    torch.testing.assert_close(kept(y, mask), expected, rtol=FLOAT64, atol=FLOAT64)
    assert (kept(y, ~mask) == 0).all()
    layer.zero_grad()
    y.sum().backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_counts(shape):
    """Integer weights repeat values; the gradient by a value is that of its copies together."""
    weights = torch.randint(0, 4, (shape[0],), generator=torch.Generator().manual_seed(0))
    weights[0] = 2
    x, layer = values(*shape), LAYERS[len(shape)](3).double()
    plain = getattr(bnkit.nn, f"BatchNorm{max(len(shape) - 2, 1)}d")(3).double()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(a, sample_weight=weights)
    repeated = plain(b.repeat_interleave(weights, 0))
    there = weights > 0
    expected = repeated[(weights.cumsum(0) - weights)[there]]
    torch.testing.assert_close(y[there], expected, rtol=FLOAT64, atol=FLOAT64)
    for p, q in zip(layer.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=FLOAT64, atol=FLOAT64)
    spread = weights.reshape(-1, *(1,) * (len(shape) - 1))
    (y.pow(3) * spread).sum().backward()
    repeated.pow(3).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-9)
    assert y.isfinite().all()  # of weight 0, but normalized like the others


def test_weights_and_mask_together():
    shape = (4, 3, 6)
    mask, x, weights = some(shape), values(*shape), torch.rand(4, 6, dtype=torch.float64) + 0.5
    layer, other = MaskedBatchNorm1d(3).double(), MaskedBatchNorm1d(3).double()
    y = layer(x, mask, weights)
    z = other(kept(x, mask), sample_weight=weights[mask])
    torch.testing.assert_close(kept(y, mask), z, rtol=FLOAT64, atol=FLOAT64)
    torch.testing.assert_close(layer.running_var, other.running_var, rtol=FLOAT64, atol=FLOAT64)


def test_nothing_masked_is_plain_batch_norm():
    x = values(4, 3, 6)
    plain = bnkit.nn.BatchNorm1d(3).double()
    expected = plain(x)
    for given in (
        {},
        {"mask": torch.ones(4, 6, dtype=torch.bool)},
        {"mask": torch.ones(4, 1, 6, dtype=torch.long)},
        {"sample_weight": torch.ones(4)},
        {"sample_weight": torch.ones(4, 6, dtype=torch.long)},
    ):
        layer = MaskedBatchNorm1d(3).double()
        torch.testing.assert_close(layer(x, **given), expected, rtol=FLOAT64, atol=FLOAT64)
        torch.testing.assert_close(layer.running_var, plain.running_var, rtol=FLOAT64, atol=FLOAT64)
    plain.load_state_dict(layer.state_dict())
    layer.load_state_dict(plain.state_dict())


def test_packed_sequences():
    lengths = torch.tensor([2, 5, 3])
    x = values(3, 5, 4).requires_grad_()
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    layer, masked = MaskedBatchNorm1d(4).double(), MaskedBatchNorm1d(4).double()
    y = layer(packed)
    assert isinstance(y, PackedSequence)
    padded, again = pad_packed_sequence(y, batch_first=True)
    assert again.tolist() == lengths.tolist()
    mask = torch.arange(5) < lengths[:, None]
    expected = masked(x.transpose(1, 2), mask).transpose(1, 2)
    torch.testing.assert_close(padded, expected, rtol=FLOAT64, atol=FLOAT64)
    torch.testing.assert_close(layer.running_var, masked.running_var)
    layer(packed, sample_weight=torch.ones(10))
    with pytest.raises(InputError, match=r"'0' \(MaskedBatchNorm2d\): .*a PackedSequence"):
        nn.Sequential(MaskedBatchNorm2d(4))(packed)
    with pytest.raises(InputError, match="holds no padding"):
        layer(packed, mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_dtypes(dtype):
    x, mask = values(4, 3, 50).to(dtype), some((4, 3, 50))
    layer, wide = MaskedBatchNorm1d(3).to(dtype), MaskedBatchNorm1d(3).double()
    for given in ({"mask": mask}, {"sample_weight": torch.linspace(1, 2, 4)}):
        y = layer(x, **given)
        assert y.dtype == dtype
        bound = dtype_tolerance(str(dtype).removeprefix("torch."))
        torch.testing.assert_close(
            y.double(), wide(x.double(), **given), rtol=bound, atol=2 * bound
        )
        torch.testing.assert_close(layer.running_var.double(), wide.running_var, rtol=1e-5, atol=0)


def test_gradients_of_every_order():
    mask, weights = some((3, 2, 4)), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    layer = MaskedBatchNorm1d(2, track_running_stats=False).double()
    for given in (
        {"mask": mask},
        {"sample_weight": weights},
        {"mask": mask, "sample_weight": weights},
    ):

        def run(x, w, b, given=given):
            state = {"weight": w, "bias": b}
            return torch.func.functional_call(layer, state, (x,), given)

        arguments = (values(3, 2, 4), values(2), values(3)[:2].clone())
        arguments = tuple(a.requires_grad_() for a in arguments)
        assert torch.autograd.gradcheck(run, arguments, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, arguments)


@pytest.mark.parametrize("training", [True, False])
def test_compile_export_and_func(training):
    """Where shapes may not depend on the mask, its values become weights: the same numbers."""
    torch._dynamo.reset()
    x, mask = values(4, 3, 6), some((4, 3, 6))
    x = torch.where(mask.unsqueeze(1), x, torch.nan)
    layer = MaskedBatchNorm1d(3).double().train(training)
    twin, third = copy.deepcopy(layer), copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = layer(a, mask), compiled(b, mask)
    torch.testing.assert_close(z, y, rtol=FLOAT64, atol=FLOAT64)
    y.pow(3).sum().backward(), z.pow(3).sum().backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(twin.running_var, layer.running_var, rtol=FLOAT64, atol=FLOAT64)
    program = torch.export.export(copy.deepcopy(third), (x, mask))
    torch.testing.assert_close(program.module()(x, mask), y, rtol=FLOAT64, atol=FLOAT64)
    got = torch.func.grad(lambda v: third(v, mask).pow(3).sum())(x)
    torch.testing.assert_close(got, a.grad, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(third.running_var, layer.running_var, rtol=FLOAT64, atol=FLOAT64)


def test_vmap_over_sequences():
    x, mask = values(2, 4, 3, 6), torch.stack([some((4, 3, 6)), ~some((4, 3, 6))])
    layer = MaskedBatchNorm1d(3, track_running_stats=False).double()
    got = torch.func.vmap(layer)(x, mask)
    expected = torch.stack([layer(v, m) for v, m in zip(x, mask, strict=True)])
    torch.testing.assert_close(got, expected, rtol=FLOAT64, atol=FLOAT64)
    # the statistics are those of all slices together
    tracking, plain = MaskedBatchNorm1d(3).double(), bnkit.nn.BatchNorm1d(3).double()
    torch.func.vmap(tracking)(x, mask)
    plain(torch.cat([kept(v, m) for v, m in zip(x, mask, strict=True)]))
    for p, q in zip(tracking.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=FLOAT64, atol=FLOAT64)


def test_copies_and_symbolic_trace():
    layer = MaskedBatchNorm1d(3)
    x, mask = values(4, 3, 6, dtype=torch.float32), some((4, 3, 6))
    layer(x, mask)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin.eval()(x, mask), copy.deepcopy(layer).eval()(x, mask))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = MaskedBatchNorm1d(3)

        def forward(self, x, mask):
            return self.norm(x, mask) + 1

    model = Model()
    traced = torch.fx.symbolic_trace(model).eval()
    torch.testing.assert_close(traced(x, mask), model.eval()(x, mask))


def test_frozen_and_not_counted():
    x, mask = values(4, 3, 6), some((4, 3, 6))
    layer, plain = MaskedBatchNorm1d(3).double(), MaskedBatchNorm1d(3).double()
    layer(x, mask), plain(x, mask)
    with bnkit.nn.no_update(layer):
        layer(x + 1, mask)
    with bnkit.nn.frozen(layer):
        y = layer(x, mask)
    torch.testing.assert_close(y, plain.eval()(x, mask))
    torch.testing.assert_close(layer.running_var, plain.running_var, rtol=0, atol=0)


def test_empty_batch():
    layer = MaskedBatchNorm1d(3)
    with pytest.warns(EmptyBatchWarning):
        y = layer(torch.empty(0, 3, 4), torch.empty(0, 4, dtype=torch.bool))
    assert y.shape == (0, 3, 4)
    assert int(layer.num_batches_tracked) == 0


def test_nonfinite_values_that_are_there_stay_out():
    layer = MaskedBatchNorm1d(3)
    x = values(4, 3, 6, dtype=torch.float32)
    x[0, 0, 0] = torch.inf
    mask = torch.ones(4, 6, dtype=torch.bool)
    with pytest.warns(bnkit.core.NonFiniteWarning, match="MaskedBatchNorm1d"):
        layer(x, mask)
    assert layer.running_mean.tolist() == [0, 0, 0]
    with pytest.raises(bnkit.core.NonFiniteError):
        MaskedBatchNorm1d(3, on_nonfinite="raise")(x, mask)


ONES = torch.ones(4, 6)
BAD = {
    "shape": ({"mask": torch.ones(4, 5, dtype=torch.bool)}, "mask of shape (4, 6)"),
    "channels": ({"mask": torch.ones(4, 3, 6, dtype=torch.bool)}, "mask of shape (4, 6)"),
    "one dimension": ({"mask": torch.ones(4, dtype=torch.bool)}, "mask of shape (4, 6)"),
    "list": ({"mask": [[True] * 6] * 4}, "got a list, which torch.as_tensor would"),
    "device": ({"mask": torch.ones(4, 6, dtype=torch.bool, device="meta")}, "on meta"),
    "float": ({"mask": ONES}, "expected a mask of bool or integers, got torch.float32"),
    "all false": ({"mask": torch.zeros(4, 6, dtype=torch.bool)}, "one that is all False"),
    "one value": (
        {"mask": torch.eye(4, 6, dtype=torch.bool) * torch.tensor([[1], [0], [0], [0]])},
        "more than 1 value per channel when training, got 1",
    ),
    "weight shape": ({"sample_weight": torch.ones(5)}, "sample_weight of shape (4, 6)"),
    "negative": ({"sample_weight": -ONES}, "sample weights >= 0"),
    "nan": ({"sample_weight": ONES * torch.nan}, "sample weights >= 0"),
    "gradient": ({"sample_weight": ONES.clone().requires_grad_()}, "Call .detach()"),
    "no weight": ({"sample_weight": 0 * ONES}, "weights that are all 0"),
    "too small": ({"sample_weight": ONES / 24}, "scale these to counts"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_layer(case):
    given, message = BAD[case]
    model = nn.ModuleList([nn.Identity(), MaskedBatchNorm1d(3)])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts[1](x, **given)

    before = copy.deepcopy(model[1].state_dict())
    with pytest.raises(InputError) as found:
        Model()(torch.randn(4, 3, 6))
    assert str(found.value).startswith("'parts.1' (MaskedBatchNorm1d): expected")
    assert message in str(found.value)
    for name, value in model[1].state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)

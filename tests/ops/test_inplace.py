"""Batch norm over its own input: the same numbers, one array less kept."""

import pytest
import torch

import bnkit
from bnkit.core import SpecError
from bnkit.ops import Activation, not_in_place
from bnkit.ops.registry import Affine

SLOPE = 0.1


def network(inplace, dtype=torch.float32, act="leaky_relu", depth=3):
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        layers.append(torch.nn.Conv2d(8, 8, 3, padding=1, bias=False, dtype=dtype))
        kind = torch.nn.LeakyReLU(SLOPE) if act == "leaky_relu" else act
        layers.append(bnkit.nn.BatchNormAct2d(8, act=kind, inplace=inplace, dtype=dtype))
    return torch.nn.Sequential(*layers)


def kept_bytes(model, x):
    """Bytes of the memory that the graph of a forward pass keeps, each piece once."""
    pieces = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        pieces[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    del y
    return sum(size for place, size in pieces.items() if place not in parameters)


def gradients(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y.pow(3).sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("act", ["leaky_relu", "none"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_same_numbers(act, last, dtype, tolerance):
    x = torch.randn(4, 8, 9, 9, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    plain, in_place = (network(flag, dtype, act) for flag in (False, True))
    for model in (plain, in_place):
        with torch.no_grad():
            model[1].weight.copy_(torch.linspace(-1.5, 1.5, 8))
            model[1].bias.uniform_(-1, 1)
    in_place.load_state_dict(plain.state_dict())
    for got, expected in zip(gradients(in_place, x), gradients(plain, x), strict=True):
        scale = expected.abs().max()
        assert (got - expected).abs().max() <= tolerance * scale
    for got, expected in zip(in_place.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_one_array_less_is_kept():
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    array = x.numel() * x.element_size()
    plain, in_place = (kept_bytes(network(flag, depth=6), x) for flag in (False, True))
    # the input, and for each pair of layers the outputs of both, but the last; in place, one
    assert plain == pytest.approx(12 * array, rel=0.01)
    assert in_place == pytest.approx(7 * array, rel=0.01)


def test_with_a_shortcut():
    layers = [bnkit.nn.BatchNormAct2d(8, act="leaky_relu", inplace=f) for f in (True, False)]
    conv = torch.nn.Conv2d(8, 8, 1)
    x = torch.randn(4, 8, 5, 5)
    found = []
    for layer in layers:
        a = x.clone().requires_grad_()
        y = layer(conv(a), a)
        found.append([y, *torch.autograd.grad(y.pow(2).sum(), [a, *layer.parameters()])])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_it_is_the_same_memory():
    layer = bnkit.nn.BatchNormAct2d(8, act="leaky_relu", inplace=True)
    x = torch.nn.Conv2d(8, 8, 1)(torch.randn(2, 8, 4, 4))
    place = x.data_ptr()
    assert layer(x).data_ptr() == place
    layer.eval()
    x = torch.randn(2, 8, 4, 4)
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)


def test_what_cannot_be_recovered_is_computed_as_usual():
    act = Activation("leaky_relu", SLOPE)
    weight, bias = torch.ones(3), torch.zeros(3)
    x = torch.randn(4, 3, 5, 5)
    leaf = x.clone().requires_grad_()
    tiny = torch.tensor([1.0, 1e-4, 1.0])
    cases = {
        "a leaf": (leaf, Affine(weight, bias, 1e-5, None, act)),
        "a view": (x[1:], Affine(weight, bias, 1e-5, None, act)),
        "bfloat16": (x.bfloat16(), Affine(weight, bias, 1e-5, None, act)),
        "too small": (x, Affine(tiny, torch.ones(3), 1e-5, None, act)),
        "relu cannot": (x, Affine(weight, bias, 1e-5, None, Activation("relu"))),
    }
    for reason, (value, affine) in cases.items():
        assert reason in not_in_place(value, affine)
    layer = bnkit.nn.BatchNormAct2d(3, act=torch.nn.LeakyReLU(SLOPE), inplace=True)
    before = leaf.detach().clone()
    layer(leaf).sum().backward()
    assert torch.equal(leaf, before)
    assert leaf.grad.isfinite().all()
    with torch.no_grad():
        layer.weight.zero_()
    x = leaf * 1
    layer(x).sum().backward()
    assert torch.equal(x, before)


def test_what_autograd_must_refuse():
    layer = bnkit.nn.BatchNormAct1d(3, act="none", inplace=True)
    x = torch.randn(8, 3, requires_grad=True)
    h = x.exp()  # keeps its output, which is written over
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        layer(h).sum().backward()
    y = layer(x * 1)
    with pytest.raises(RuntimeError, match=r"create_graph.*inplace=False"):
        torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    with pytest.raises(SpecError, match=r"inplace=True needs an activation.*got 'relu'"):
        bnkit.nn.BatchNormAct2d(3, inplace=True)


def test_it_shows_and_compiles():
    layer = bnkit.nn.BatchNormAct2d(8, act="none", inplace=True)
    assert repr(layer).endswith("act=none, inplace=True)")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 8, 5, 5)
    torch.testing.assert_close(compiled(x), torch.nn.BatchNorm2d(8)(x), rtol=1e-4, atol=1e-5)

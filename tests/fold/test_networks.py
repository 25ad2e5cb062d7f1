"""Whole networks: folded, equal, and left alone."""

import copy

import pytest
import torch
from torch import nn

import bnkit
from tests.fold.networks import NETWORKS, batch_norms, lived

FLOAT32 = 2e-6  # relative error of the output: the target of the project


def fold(model, x, **options):
    """Fold, and compare the result once more by hand."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folding = bnkit.fold(model, x, **options)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    with torch.no_grad():
        expected, got = model(x), folding.model(x)
    assert float((got - expected).abs().max() / expected.abs().max()) <= FLOAT32
    return folding


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_fold_within_the_target(name):
    model = lived(NETWORKS[name]())
    folding = fold(model, torch.randn(2, 3, 32, 32))
    assert folding.proof.holds
    assert folding.proof.relative_error <= FLOAT32
    assert folding.proof.relative_error64 <= 1e-13
    assert not batch_norms(folding.model)
    assert not folding.refused
    # what is left stands behind something that others use too
    first = (*(f"layers.{i}.norm1" for i in range(3)), "norm")
    left = {"DenseNet": first, "U-Net": ("both",)}.get(name, ())
    assert folding.kept == left
    assert {*folding.folded} == {*batch_norms(model)} - {*left}


def test_unused_batch_norm_is_refused():
    net = lived(nn.ModuleDict({"a": nn.BatchNorm2d(3)}))

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.spare = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), net

        def forward(self, x):
            return self.bn(self.conv(x))

    folding = bnkit.fold(lived(Holder()), torch.randn(1, 3, 8, 8))
    assert folding.refused == {"spare.a": "it did not run on the example inputs"}
    assert folding.folded == ("bn",)


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_every_convolution(spatial, groups, transposed, bias):
    conv = getattr(nn, f"Conv{'Transpose' * transposed}{spatial}d")
    layer = conv(4, 8, 3, stride=2, padding=1, groups=groups, bias=bias)
    norm = getattr(nn, f"BatchNorm{spatial}d")(8)
    folding = fold(lived(nn.Sequential(layer, norm)), torch.randn(3, 4, *[7] * spatial))
    assert folding.folded == ("1",)
    assert folding.model[0].bias.requires_grad


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_parameters_keep_dtype_layout_and_gradient_flag(dtype, affine):
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, affine=affine), nn.ReLU())
    net = lived(net).to(dtype).to(memory_format=torch.channels_last)
    net[0].weight.requires_grad_(False)
    folding = bnkit.fold(net, torch.randn(2, 4, 9, 9).to(dtype))
    conv = folding.model[0]
    assert conv.weight.dtype == conv.bias.dtype == dtype
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not conv.weight.requires_grad
    assert conv.bias.requires_grad
    assert folding.proof.holds
    exact = net.double().requires_grad_(False)(torch.ones(2, 4, 9, 9).double())
    # rounded once: the error is that of one rounding of each weight
    tolerance = 40 * torch.finfo(dtype).eps
    got = (
        copy.deepcopy(folding.model).double().requires_grad_(False)(torch.ones(2, 4, 9, 9).double())
    )
    assert float((got - exact).abs().max() / exact.abs().max()) <= max(tolerance, 1e-14)


def test_in_place_keeps_the_parameters_themselves():
    model = lived(NETWORKS["ResNet-50"]())
    x = torch.randn(2, 3, 32, 32)
    expected = model(x).detach()
    parameters = {n: p for n, p in model.named_parameters() if n.startswith("4.conv")}
    folding = bnkit.fold_(model, x)
    assert folding.model is model
    assert not batch_norms(model)
    now = dict(model.named_parameters())
    assert all(now[n] is p for n, p in parameters.items())
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_left_over_batch_norms_may_stay():
    net = lived(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)))
    kept = bnkit.fold(net, torch.randn(1, 3, 4, 4), leftover="keep")
    assert isinstance(kept.model[1], nn.BatchNorm2d)
    assert [r.action for r in kept.records] == ["kept"]
    turned = fold(net, torch.randn(1, 3, 4, 4))
    assert type(turned.model[1]).__name__ == "ScaleShift"
    assert "ReLU" in turned.records[0].reason


def test_a_model_that_is_a_batch_norm():
    net = lived(nn.BatchNorm1d(4))
    folding = fold(net, torch.randn(5, 4))
    assert type(folding.model).__name__ == "ScaleShift"
    assert torch.allclose(folding.unfold()(torch.ones(2, 4)), net(torch.ones(2, 4)))
    with pytest.raises(bnkit.BatchNormError, match="Use fold"):
        bnkit.fold_(net, torch.randn(5, 4))


def test_folded_model_can_be_copied_saved_compiled_and_exported(tmp_path):
    model = lived(NETWORKS["DenseNet"]())
    x = torch.randn(2, 3, 16, 16)
    folded = bnkit.fold(model, x).model
    torch.save(folded.state_dict(), tmp_path / "state.pt")
    other = bnkit.fold(lived(NETWORKS["DenseNet"](), seed=1), x).model
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x), folded(x))
    program = torch.export.export(folded, (x,))
    assert torch.allclose(program.module()(x), folded(x), atol=1e-6)
    assert not any(
        "batch_norm" in str(n.target) for n in program.graph.nodes if n.op == "call_function"
    )


def test_results_are_plain_values():
    import json

    folding = bnkit.fold(lived(NETWORKS["DenseNet"]()), torch.randn(1, 3, 16, 16))
    document = json.loads(json.dumps(folding.to_dict(), allow_nan=False))
    assert [r["name"] for r in document["records"]] == [r.name for r in folding.records]
    assert document["proof"]["holds"] is True
    text = str(folding)
    assert "8 batch norms: 4 folded, 4 left as scale and shift" in text
    assert all(r.name in text for r in folding.records)


def test_ranges_tell_what_quantization_has_to_span():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)).eval()
    net[0].weight.data.fill_(0.5)
    net[1].weight.data.copy_(torch.tensor([1.0, 1.0, 1.0, 1.0, 30.0]))
    folding = bnkit.fold(net, torch.randn(1, 3, 6, 6))
    (ranges,) = folding.ranges
    assert ranges.spread_before == 1
    assert ranges.spread_after == pytest.approx(30, rel=1e-4)
    assert ranges.suffers
    assert "quantize per channel" in str(folding)


def test_the_verb_is_callable_whatever_was_imported():
    import bnkit.fold

    assert callable(bnkit.fold)
    assert bnkit.fold.fold is not bnkit.fold
    assert bnkit.Folding is bnkit.fold.Folding

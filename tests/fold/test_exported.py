"""Programs of torch.export fold like the modules they came from."""

import pytest
import torch
from torch import nn

import bnkit
from tests.fold.networks import NETWORKS, lived

# torch 2.13 warns about itself when it copies the module of a program
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")


@pytest.mark.parametrize("name", NETWORKS)
def test_programs(name):
    model, x = lived(NETWORKS[name]()), torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (x,))
    folding = bnkit.fold(program, x)
    plain = bnkit.fold(model, x)
    assert {*folding.folded} == {*plain.folded}
    assert folding.proof.relative_error <= 2e-6
    assert folding.proof.relative_error64 <= 1e-13
    with torch.no_grad():
        got, expected = folding.model(x), model(x)
    assert float((got - expected).abs().max() / expected.abs().max()) <= 2e-6
    assert torch.equal(program.module()(x), model(x))  # the program is as it was


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_all_convolutions(spatial, transposed):
    conv = getattr(nn, f"Conv{'Transpose' * transposed}{spatial}d")
    extra = {"output_padding": 1} if transposed else {}
    layer = conv(4, 8, 3, stride=2, padding=1, dilation=1, groups=2, **extra)
    net = lived(nn.Sequential(layer, getattr(nn, f"BatchNorm{spatial}d")(8)))
    x = torch.randn(2, 4, *[7] * spatial)
    folding = bnkit.fold(torch.export.export(net, (x,)), (x,))
    assert folding.folded == ("1",)
    assert torch.allclose(folding.model(x), net(x), atol=1e-5)


def test_training_mode_in_a_program_is_left_alone():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    net.eval()[1].train()
    x = torch.randn(4, 3, 5, 5)
    folding = bnkit.fold(torch.export.export(net, (x,)), x, check=False)
    assert "3" in folding.folded
    assert "1" not in folding.folded


def test_shared_tensors_in_a_program():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.a(self.conv(x)) - self.b(self.conv(x + 1))

    model, x = lived(Net()), torch.randn(2, 3, 8, 8)
    folding = bnkit.fold(torch.export.export(model, (x,)), x)
    assert not folding.folded
    assert torch.allclose(folding.model(x), model(x), atol=1e-5)

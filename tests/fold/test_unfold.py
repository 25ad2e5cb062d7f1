"""The way back: the same inference, and statistics that fit."""

import pytest
import torch
from torch import nn

import bnkit
from tests.fold.networks import NETWORKS, batch_norms, lived


@pytest.mark.parametrize("name", NETWORKS)
def test_unfolding_changes_no_inference_and_brings_all_layers_back(name):
    model = lived(NETWORKS[name]())
    x = torch.randn(2, 3, 32, 32)
    folding = bnkit.fold(model, x)
    before = {k: v.clone() for k, v in folding.model.state_dict().items()}
    back = folding.unfold()
    assert batch_norms(back) == batch_norms(model)
    assert not back.training
    with torch.no_grad():
        expected, got = folding.model(x), back(x)
    assert float((got - expected).abs().max() / expected.abs().max()) <= 5e-6
    assert all(torch.equal(before[k], v) for k, v in folding.model.state_dict().items())


@pytest.mark.parametrize("affine", [True, False])
def test_statistics_are_those_of_the_data(affine):
    """Where the old statistics described the data, so do the new ones."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=affine, momentum=None)
    ).double()
    if affine:
        nn.init.normal_(net[1].weight)
        nn.init.normal_(net[1].bias)
    x = torch.randn(8, 3, 12, 12).double()
    net(x)
    count = 8 * 10 * 10
    net.eval()
    net[1].running_var *= (count - 1) / count  # the variance of the data, as eval should see it
    folding = bnkit.fold(net, x)
    back = folding.unfold()
    out = folding.model[0](x).detach()
    mean, var = out.mean((0, 2, 3)), out.var((0, 2, 3), correction=0)
    if affine:
        assert torch.allclose(back[1].running_mean, mean, atol=1e-12)
        assert torch.allclose(back[1].running_var, var, atol=1e-12)
    else:
        assert torch.allclose(mean, torch.zeros(6).double(), atol=1e-12)
        assert torch.allclose(back[1].running_var, var, atol=1e-4)
    back.train()
    net.train()
    # training normalizes with the batch, as the old layer did
    assert torch.allclose(back(x), net(x), atol=1e-4)


def test_statistics_of_a_batch_norm_before_a_convolution():
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1))
    net = lived(net).double()
    x = torch.randn(4, 3, 8, 8).double()
    back = bnkit.fold(net, x).unfold()
    assert torch.allclose(back(x), net(x), atol=1e-12)
    assert torch.equal(back[1][0].running_mean, net[1].running_mean)
    assert torch.equal(back[1][0].running_var, net[1].running_var)


def test_unfolding_after_fine_tuning_keeps_what_was_learned():
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    x = torch.randn(2, 3, 8, 8)
    folding = bnkit.fold(net, x)
    with torch.no_grad():
        folding.model[0].weight.mul_(1.5)
    assert torch.allclose(folding.unfold()(x), folding.model(x), atol=1e-5)


def test_batch_norms_in_a_row_come_back_as_one():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    folding = bnkit.fold(lived(net), torch.randn(5, 3))
    back = folding.unfold()
    assert batch_norms(back) == ["2"]
    x = torch.randn(5, 3)
    assert torch.allclose(back(x), net(x), atol=1e-5)


def test_other_arguments_are_refused():
    with pytest.raises(bnkit.BatchNormError, match="what bnkit.fold returned, got Linear"):
        bnkit.unfold(nn.Linear(2, 2))

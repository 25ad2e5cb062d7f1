"""bnkit's own layers and those of others: folded with what they mean in inference."""

import pytest
import torch
from torch import nn

import bnkit
from bnkit.fold.modules import ScaleShift
from tests.fold.networks import lived
from tests.fold.test_networks import FLOAT32, fold

PLAIN = {
    "GhostBatchNorm2d": {"virtual_batch_size": 2}, "BatchRenorm2d": {}, "SyncBatchNorm": {},
    "BatchNorm2d": {"eps": 1e-3},
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_layers_whose_inference_is_plain(name):
    options = PLAIN[name]
    norm = getattr(bnkit.nn, name)(4, **options)
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 3), norm))
    folding = fold(net, torch.randn(4, 3, 8, 8))
    assert folding.folded == ("1",)
    unfolded = folding.unfold()
    assert type(unfolded[1]) is type(norm)


def test_frozen_layers():
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 3), bnkit.nn.BatchNorm2d(4), nn.ReLU()))
    bnkit.nn.freeze_(net)
    assert fold(net, torch.randn(2, 3, 8, 8)).folded == ("1",)


def test_torch_synchronized_layer():
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)))
    assert fold(net, torch.randn(2, 3, 8, 8)).folded == ("1",)


@pytest.mark.parametrize("act", ["relu", "silu", "leaky_relu", "none"])
@pytest.mark.parametrize("before", ["conv", "pool"])
def test_activation_and_residual_stay(act, before):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1) if before == "conv" else nn.AvgPool2d(1)
            self.norm = bnkit.nn.BatchNormAct2d(4, act=act)
            self.last = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.last(self.norm(self.conv(x), x))

    folding = fold(lived(Net()), torch.randn(2, 4, 6, 6))
    assert folding.folded == (("norm",) if before == "conv" else ())
    assert type(folding.model.norm).__name__ == ("FoldedAct" if before == "conv" else "ScaleShift")


def test_residual_that_is_the_input_itself():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), bnkit.nn.BatchNormAct2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y, y)

    assert fold(lived(Net()), torch.randn(2, 4, 6, 6)).kept == ("norm",)


def test_activation_between_batch_norm_and_what_comes_behind():
    net = nn.Sequential(nn.ReLU(), bnkit.nn.BatchNormAct2d(4), nn.Conv2d(4, 4, 1))
    folding = fold(lived(net), torch.randn(2, 4, 6, 6))
    assert folding.kept == ("1",)
    assert "its activation (relu) stands between" in folding.records[0].reason


def test_channels_last_axis_behind_a_linear_layer():
    net = nn.Sequential(nn.Linear(5, 6), bnkit.nn.BatchNorm(6, axis=-1))
    folding = fold(lived(net), torch.randn(2, 6, 5))
    assert folding.folded == ("1",)
    assert "dimensions" in str(
        pytest.raises(bnkit.core.InputError, folding.model, torch.ones(3, 5)).value
    )
    wrong = nn.Sequential(nn.Linear(5, 6), bnkit.nn.BatchNorm(6, axis=1))
    assert fold(lived(wrong), torch.randn(2, 6, 5)).kept == ("1",)


def test_masked_and_domain_layers_are_refused():
    net = nn.Sequential(nn.Conv1d(3, 4, 1), bnkit.nn.MaskedBatchNorm1d(4))
    folding = fold(lived(net), torch.randn(2, 3, 6))
    assert "forward pass of its own" in folding.refused["1"]

    class Domains(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.norm = bnkit.nn.DomainBatchNorm2d(4, domains=("a", "b"))

        def forward(self, x):
            with bnkit.nn.domain(self, "a"):
                return self.norm(self.conv(x))

    folding = fold(lived(Domains()), torch.randn(2, 3, 6, 6))
    assert len(folding.refused) == 2
    assert all("one of the domains of 'norm'" in reason for reason in folding.refused.values())


class FrozenBatchNorm2d(nn.Module):
    """As in torchvision, detectron2 and transformers: buffers, and a formula."""

    def __init__(self, n, eps=1e-5, power=1.0):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(n))
        self.eps, self.power = eps, power

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt() ** self.power
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


def test_frozen_layers_of_other_libraries():
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)))
    assert fold(net, torch.randn(2, 3, 6, 6)).folded == ("1",)
    for liar in (FrozenBatchNorm2d(4, eps=0.1), FrozenBatchNorm2d(4, power=2.0)):
        net = lived(nn.Sequential(nn.Conv2d(3, 4, 1), liar))
        folding = fold(net, torch.randn(2, 3, 6, 6))
        assert "forward pass of its own" in folding.refused["1"]


def test_lazy_layers_are_refused_or_run():
    net = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d())
    net(torch.randn(2, 3, 6, 6))
    assert fold(lived(net), torch.randn(2, 3, 6, 6)).folded == ("1",)


@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
@pytest.mark.parametrize("values", [40, 1 << 18])
@pytest.mark.parametrize("last", [False, True])
def test_scale_and_shift(ndim, values, last):
    spatial = [2] * (ndim - 2)
    x = torch.randn(values // (4 * 2 ** len(spatial)), 4, *spatial)
    if last and ndim > 3:
        x = x.to(memory_format=torch.channels_last if ndim == 4 else torch.channels_last_3d)
    scale, shift = torch.randn(2, 4)
    got = ScaleShift(scale, shift)(x)
    shape = (-1, *[1] * (ndim - 2))
    expected = x * scale.view(shape) + shift.view(shape)
    assert float((got - expected).abs().max()) <= FLOAT32 * float(expected.abs().max())
    assert got.is_contiguous() or last


def test_scale_and_shift_of_another_rank_or_dtype():
    layer = ScaleShift(torch.ones(4), torch.ones(4), ndim=(4,))
    with pytest.raises(bnkit.core.InputError, match="ScaleShift.*dimensions"):
        layer(torch.ones(2, 4))
    assert layer(torch.ones(2, 4, 1, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16

"""What the probe sees of masks, of weights, and of channels on other axes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import bnkit

LENGTHS = torch.arange(128) % 15 + 5
MASK = torch.arange(20) < LENGTHS[:, None]


class Masked(nn.Module):
    def __init__(self, **named):
        super().__init__()
        self.bn, self.named = bnkit.nn.MaskedBatchNorm1d(4), named

    def forward(self, x, mask):
        return self.bn(x, mask=mask) if self.named else self.bn(x, mask)


def padded(fill):
    x = 2 + 3 * torch.randn(128, 4, 20, generator=torch.Generator().manual_seed(0))
    return torch.where(MASK[:, None], x, torch.tensor(fill))


def batches(x):
    pairs = zip(x.split(32), MASK.split(32), strict=True)
    return [{"x": a, "mask": b} for a, b in pairs]


@pytest.mark.parametrize("fill", [0.0, 1e4])
@pytest.mark.parametrize("named", [{}, {"by": "name"}])
def test_padding_does_not_count(fill, named):
    x = padded(fill)
    model = Masked(**named).train()
    model.bn.momentum = None
    for batch in batches(x):
        model(**batch)
    found = bnkit.diagnose(model.eval(), batches(x))
    seen = found.probe.layers["bn"]
    kept = x.movedim(1, -1)[MASK].double().numpy()
    np.testing.assert_allclose(seen.mean, kept.mean(0), rtol=1e-5)
    np.testing.assert_allclose(seen.var, kept.var(0), rtol=1e-5)
    assert seen.count == int(MASK.sum())
    assert seen.verdict == "ok"
    assert not found.findings


def test_without_its_mask_the_padding_is_seen():
    model = Masked().eval()
    wrong = bnkit.diagnose(model.bn, list(padded(1e4).split(32)))
    assert wrong.probe.layers[""].verdict == "error"


def test_weights_count_as_often_as_they_say():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = bnkit.nn.MaskedBatchNorm1d(4)

        def forward(self, x, w):
            return self.bn(x, sample_weight=w)

    x, w = torch.randn(64, 4), torch.arange(64) % 3 + 1.0
    found = bnkit.diagnose(Weighted().eval(), [{"x": x, "w": w}] * 2)
    seen, repeated = found.probe.layers["bn"], x.repeat_interleave(w.long(), 0).double().numpy()
    np.testing.assert_allclose(seen.mean, repeated.mean(0), atol=1e-6)
    np.testing.assert_allclose(seen.var, repeated.var(0), rtol=1e-5)
    assert seen.count == 2 * w.sum()


def test_packed_sequences():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = bnkit.nn.MaskedBatchNorm1d(4)

        def forward(self, x):
            packed = pack_padded_sequence(
                x, LENGTHS[: len(x)].clone(), batch_first=True, enforce_sorted=False
            )
            return self.bn(packed).data

    found = bnkit.diagnose(Packed().eval(), [padded(1e4).mT[:32]] * 2)
    assert found.probe.layers["bn"].count == 2 * int(LENGTHS[:32].sum())


@pytest.mark.parametrize(
    ("axis", "sizes"), [(-1, 6), ((1, 3), (4, 6)), ((3, 1), (6, 4)), ((-1, 2), (6, 5)), (0, 64)]
)
def test_channels_on_any_axes(axis, sizes):
    x = (
        torch.randn(64, 4, 5, 6) * torch.linspace(0.5, 2, 6)
        + torch.linspace(-1, 1, 4)[:, None, None]
    )
    layer = bnkit.nn.BatchNorm(sizes, axis=axis, momentum=None)
    layer(x)
    model = nn.Sequential(layer.eval(), nn.ReLU())
    found = bnkit.diagnose(model, [x], selection=bnkit.doctor.Selection(select=("BN2",)))
    seen = found.probe.layers["0"]
    np.testing.assert_allclose(seen.mean, layer.running_mean.flatten().numpy(), atol=1e-5)
    assert seen.verdict == "ok"
    assert seen.count == x.numel() / layer.running_mean.numel()
    with torch.no_grad():
        layer.running_mean += 2
    assert bnkit.diagnose(model, [x]).probe.layers["0"].verdict == "error"


def test_a_layer_over_several_axes_is_not_taken_for_a_wrong_axis():
    model = nn.Sequential(nn.Linear(8, 16), bnkit.nn.BatchNorm((5, 16), axis=(1, 2)))
    found = bnkit.diagnose(model, torch.randn(64, 5, 8), "train")
    assert "BN107" not in {f.code for f in found.findings}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_every_precision_are_probed(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = 3 + 5 * torch.randn(256, 4)
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    diagnosis = bnkit.diagnose(model.eval().to(dtype), x.to(dtype))
    assert [f.code for f in diagnosis.errors] == ["BN201"]
    assert diagnosis.impact.before > 0.1
    true = model[0](x.to(dtype)).double()
    np.testing.assert_allclose(diagnosis.probe.layers["1"].mean, true.mean(0).detach(), rtol=0.01)


def test_a_layer_without_eps_is_known_by_its_statistics():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(8))
            self.register_buffer("running_var", torch.ones(8))

        def forward(self, x):
            scale = self.running_var.rsqrt()
            shift = -self.running_mean * scale
            return x * scale[:, None, None] + shift[:, None, None]

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Plain(), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    x = 3 + 5 * torch.randn(64, 3, 4, 4)
    diagnosis = bnkit.diagnose(model.eval(), x)
    assert [f.code for f in diagnosis.errors][:1] == ["BN204"]
    plan = bnkit.recalibrate(model, x, consistent=True)
    expected = model[0](x).mean((0, 2, 3)).detach()
    np.testing.assert_allclose(plan["1"].new_mean, expected, rtol=1e-4)

"""The proof must be able to fail, and to say where."""

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import Affine
from bnkit.fold import writing
from tests.fold.networks import NETWORKS, lived


def net():
    return lived(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        )
    )


@pytest.mark.parametrize("fault", [1e-3, 3e-5])
def test_a_wrong_fold_is_caught_and_its_layer_named(monkeypatch, fault):
    right = writing.fold_left

    def wrong(xp, weight, bias, affine, layout):
        factor = 1 + fault if weight.shape[1] == 4 else 1
        return right(xp, weight, bias, Affine(affine.scale * factor, affine.shift), layout)

    monkeypatch.setattr(writing, "fold_left", wrong)
    model, x = net(), torch.randn(2, 3, 9, 9)
    with pytest.raises(bnkit.core.FoldError, match="the first layer that differs is '4'"):
        bnkit.fold(model, x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(bnkit.core.FoldError):
        bnkit.fold_(model, x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    folding = bnkit.fold(model, x, check=False)
    assert not folding.proof.holds
    assert folding.proof.relative_error64 > fault / 10
    assert "NOT EQUAL" in str(folding)


def test_only_difficult_inputs_show_a_missing_border(monkeypatch):
    model = lived(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)))
    monkeypatch.setattr(
        writing, "ChannelPad", lambda values, widths: writing_pad(values * 0, widths)
    )
    from bnkit.fold.modules import ChannelPad as writing_pad

    with pytest.raises(bnkit.core.FoldError, match="relative error"):
        bnkit.fold(model, torch.randn(1, 3, 16, 16))


def test_tolerance():
    model, x = net(), torch.randn(2, 3, 9, 9)
    assert bnkit.fold(model, x, tolerance=1e-5).proof.holds
    with pytest.raises(bnkit.core.FoldError, match="expected outputs equal within 1e-12"):
        bnkit.fold(model, x, tolerance=1e-12)
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(bnkit.core.FoldError, match="tolerance above 0"):
            bnkit.fold(model, x, tolerance=bad)
    with pytest.raises(bnkit.core.FoldError, match="leftover"):
        bnkit.fold(model, x, leftover="drop")


def test_what_is_compared():
    proof = bnkit.fold(net(), torch.randn(2, 3, 9, 9)).proof
    names = {c.inputs for c in proof.checks}
    assert {"given", "times 100", "zeros", "border 100 times", "constant channels"} <= names
    assert {c.dtype for c in proof.checks} == {"float32", "float64"}
    assert len(proof.checks) == 12
    two = [torch.randn(2, 3, 9, 9), (torch.randn(1, 3, 7, 7),), {"input": torch.randn(1, 3, 5, 5)}]
    assert len(bnkit.fold(net(), two).proof.checks) == 36


def test_the_rounding_of_the_original_is_no_error_of_folding():
    """A network that magnifies small differences is no better than its own rounding."""

    class Magnifies(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return torch.sin(300 * self.norm(self.conv(x)))

    folding = bnkit.fold(lived(Magnifies()), torch.randn(1, 3, 8, 8))
    assert folding.proof.holds
    assert folding.proof.relative_error > 2e-6
    with pytest.raises(bnkit.core.FoldError):
        bnkit.fold(lived(Magnifies()), torch.randn(1, 3, 8, 8), tolerance=2e-6)


@pytest.mark.parametrize("bad", [None, 3, "x", [], (), {"x": 1}])
def test_example_inputs_without_a_tensor(bad):
    with pytest.raises(bnkit.core.FoldError, match="expected example inputs"):
        bnkit.fold(net(), bad)


def test_other_bad_arguments():
    x = torch.randn(2, 3, 9, 9)
    with pytest.raises(bnkit.core.FoldError, match="got int"):
        bnkit.fold(3, x)
    with pytest.raises(bnkit.core.FoldError, match="without any"):
        bnkit.fold(nn.Sequential(nn.Linear(3, 4)).eval(), x)
    with pytest.raises(bnkit.core.FoldError, match="that the model takes"):
        bnkit.fold(net(), torch.randn(2, 5, 9, 9))
    with pytest.raises(bnkit.core.FoldError, match=r"Pass model\.module"):
        bnkit.fold(nn.DataParallel(net()), x)

    class Uncopyable(nn.Sequential):
        def __deepcopy__(self, memo):
            raise TypeError("no")

    with pytest.raises(bnkit.core.FoldError, match="can be copied"):
        bnkit.fold(Uncopyable(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), x)


def test_randomness_and_modes_are_as_before():
    model = lived(NETWORKS["MobileNetV2"]())
    x = torch.randn(1, 3, 32, 32)
    state = torch.get_rng_state()
    bnkit.fold(model, x)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_outputs_of_any_structure():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x, *, scale=None):
            y = self.norm(self.conv(x))
            return {"y": y, "all": [y, (y.argmax(1), None)], "scale": scale}

    folding = bnkit.fold(lived(Net()), {"x": torch.randn(1, 3, 6, 6)})
    assert folding.folded == ("norm",)


def test_integer_outputs_prove_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)).argmax(1)

    with pytest.raises(bnkit.core.FoldError, match="no floating point numbers"):
        bnkit.fold(lived(Net()), torch.randn(1, 3, 6, 6))

"""Numbers that no batch norm should hold, or that no dtype can."""

import pytest
import torch
from torch import nn

import bnkit
from tests.fold.networks import lived


@pytest.mark.parametrize("numbers", ["negative variance", "nan", "infinite"])
def test_impossible_numbers_are_refused(numbers):
    net = lived(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    )
    value = {"negative variance": -1.0, "nan": float("nan"), "infinite": float("inf")}[numbers]
    (net[3].running_var if numbers != "infinite" else net[3].running_mean)[1] = value
    folding = bnkit.fold(net, torch.randn(2, 3, 4, 4), check=False)
    assert "expected" in folding.refused["3"]
    assert not folding.proof.holds  # the original gives NaN: nothing is compared
    with pytest.raises(bnkit.BatchNormError, match="nothing could be compared"):
        bnkit.fold(net, torch.randn(2, 3, 4, 4))


def test_overflow_in_half_precision_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    net[1].running_var.fill_(1e-6)
    net[1].weight.data.fill_(6e4)
    with pytest.raises(bnkit.BatchNormError, match=r"'0' \(Conv2d\).*within torch\.float16"):
        bnkit.fold(net.half(), torch.randn(1, 3, 4, 4).half())


@pytest.mark.parametrize("examples", ["one", "the second of two"])
def test_an_example_that_is_not_finite_proves_nothing(examples):
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    good, bad = torch.randn(2, 3, 4, 4), torch.full((2, 3, 4, 4), float("nan"))
    given = bad if examples == "one" else [good, bad]
    with pytest.raises(bnkit.BatchNormError, match="original gives NaN or infinity"):
        bnkit.fold(net, given)
    folding = bnkit.fold(net, given, check=False)
    assert not folding.proof.holds
    assert "nothing was compared on the given inputs" in str(folding)
    assert bnkit.fold(net, [good, good]).proof.holds

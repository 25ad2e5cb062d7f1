"""Layers of equal shape in another order than the target's: noticed by the kernel before them."""

import numpy as np
import pytest
from torch import nn

import bnkit
from bnkit.conversion.files import file_side
from bnkit.conversion.partners import partners
from bnkit.core import ConversionError
from tests.conversion.test_plan import norm


def conv(scope, i, o, size=1):
    return {f"{scope}/kernel": np.ones((size, size, i, o), np.float32)}


class Bottleneck(nn.Module):
    """The shortcut is registered last, as in torchvision."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(6, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2)
        self.conv3 = nn.Conv2d(2, 8, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.shortcut = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8))


def first_shortcut(conv_name, norm_name):
    """Keras makes the shortcut first, and numbers layers so."""
    file = conv(conv_name(0), 6, 8) | norm(norm_name(0), 8)
    file |= conv(conv_name(1), 6, 2) | norm(norm_name(1), 2)
    return file | conv(conv_name(3), 2, 8) | norm(norm_name(3), 8, seed=5)


@pytest.mark.parametrize(
    "names",
    [
        ("net/conv2d_{}", "net/batch_normalization_{}"),
        ("net/conv2_block1_{}_conv", "net/conv2_block1_{}_bn"),
        ("net/layer-{}", "net/layer-{}/BatchNorm"),
    ],
)
def test_batch_norms_of_equal_size_are_not_swapped_in_silence(names):
    file = first_shortcut(*(n.format for n in names))
    with pytest.raises(ConversionError, match=r"not clear \(by order|numbers in the names"):
        bnkit.convert(file, Bottleneck(), framework="tf1")
    rules = {names[1].format(0): "shortcut.1", names[1].format(3): "bn3"}
    plan = bnkit.convert(file, Bottleneck(), rules=rules, framework="tf1")
    assert plan.restored["shortcut.0.weight"] == f"{names[0].format(0)}/kernel"


def test_an_order_that_agrees_is_taken():
    file = conv("n/conv2d", 6, 2) | norm("n/batch_normalization", 2)
    file |= conv("n/conv2d_1", 2, 8) | norm("n/batch_normalization_1", 8)
    file |= conv("n/conv2d_2", 6, 8) | norm("n/batch_normalization_2", 8, seed=5)
    plan = bnkit.convert(file, Bottleneck())
    assert plan.restored["shortcut.1.weight"] == "n/batch_normalization_2/gamma"


def test_networks_that_normalize_first_prove_nothing():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn1 = nn.BatchNorm2d(4)
            self.conv1 = nn.Conv2d(4, 4, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(4)
            self.conv2 = nn.Conv2d(4, 4, 1, bias=False)

    file = norm("n/bn_1", 4) | conv("n/conv_1", 4, 4) | norm("n/bn_2", 4) | conv("n/conv_2", 4, 4)
    plan = bnkit.convert(file, First(), framework="tf1")
    assert plan.restored["bn2.weight"] == "n/bn_2/gamma"


def test_scopes_and_stems_name_the_kernel():
    file = conv("n/conv1", 3, 4) | norm("n/conv1/BatchNorm", 4)
    file |= conv("n/b1_2_conv", 4, 4) | norm("n/b1_2_bn", 4) | norm("n/other", 4)
    side = file_side(file, "tf1")
    by_id = {id(x): x.name for x in side.layers}
    found = {by_id[k]: v.name for k, v in partners(side).items()}
    assert found == {"n/conv1/BatchNorm": "n/conv1", "n/b1_2_bn": "n/b1_2_conv"}

"""fvcore's precise batch norm: where it is right, and the defects that are not ours."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from tests.recalibration.data import batches, network
from tests.tolerances import FRAMEWORK, relative_error

pytestmark = pytest.mark.frameworks
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its newest release is of 2022
    precise_bn = pytest.importorskip(
        "fvcore.nn.precise_bn", reason="`make test-frameworks` installs fvcore"
    )


def test_the_same_where_it_is_right():
    """Ordinary means, reached layers, no dropout: the same up to its missing n / (n - 1)."""
    model, data = network(), batches(16, 9, 16)
    model[3].p = 0.0
    plan = bnkit.recalibrate(model, data)
    precise_bn.update_bn_stats(model, data, len(data))
    for layer in plan:
        theirs = model.get_submodule(layer.name)
        ours = layer.new_var * (1 - 1 / layer.count)
        assert relative_error(layer.new_mean, theirs.running_mean) < FRAMEWORK
        assert relative_error(ours, theirs.running_var) < FRAMEWORK


def test_its_variance_is_negative_at_mean_1e4():
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(64, 16, generator=generator) + 1e4 for _ in range(20)]
    model = nn.Sequential(nn.BatchNorm1d(16))
    found = bnkit.recalibrate(model, data)["0"]
    true = torch.cat(data).double().var(0).numpy()
    assert np.abs(found.new_var / true - 1).max() < 1e-6
    precise_bn.update_bn_stats(model, data, len(data))
    assert model[0].running_var.min() < 0


def test_a_short_loader_leaves_its_marks_on_the_model():
    data = batches(8, 8)
    model = network()
    with pytest.raises(AssertionError):
        precise_bn.update_bn_stats(model, data, 5)
    assert model[1].momentum == 1.0
    ours = network()
    assert bnkit.recalibrate(ours, data, batches=5).batches == 2
    assert ours[1].momentum == 0.1

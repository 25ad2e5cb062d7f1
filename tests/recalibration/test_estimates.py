"""The numbers: exact where today's tools are not."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn

import bnkit
from bnkit.core import InputError, Moments, population_statistics
from tests.recalibration.data import OURS, batches, network, truth
from tests.tolerances import FRAMEWORK, relative_error

SINGLE = 1e-6  # float32 moments of a batch, merged in float64


def one_layer(data, **options):
    return bnkit.recalibrate(nn.Sequential(nn.BatchNorm1d(data[0].shape[1])), data, **options)["0"]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, OURS, bnkit.nn.BatchNormAct2d])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_first_layer_is_that_of_all_values_together(norm, channels_last):
    model, data = network(norm), batches(16, 16, 5, 1)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        data = [x.contiguous(memory_format=torch.channels_last) for x in data]
    found = bnkit.recalibrate(model, data)["1"]
    mean, var = truth(model[0](torch.cat(data)).detach())
    assert relative_error(found.new_mean, mean) < SINGLE
    assert relative_error(found.new_var, var) < SINGLE
    assert found.count == 38 * 64


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, OURS])
@pytest.mark.parametrize("step", [0, 1])
def test_large_mean_costs_no_digits(norm, channels_last, step):
    """Mean 1e4, unit variance, float32: the issue's bound is 1e-4."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(16, 8, 14, 14, generator=generator) + 1e4 + step * i for i in range(8)]
    if channels_last:
        data = [x.contiguous(memory_format=torch.channels_last) for x in data]
    found = bnkit.recalibrate(nn.Sequential(norm(8)), data)["0"]
    mean, var = truth(torch.cat(data))
    assert np.abs(found.new_var / var - 1).max() < 1e-6
    assert np.abs(found.new_mean - mean).max() < 1e-7


def test_sorted_data_keeps_the_variance_between_batches():
    """8 batches whose means step by 3: the mean of variances would be near 1."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(64, 2, generator=generator) + 3 * i for i in range(8)]
    assert relative_error(one_layer(data).new_var, truth(torch.cat(data))[1]) < SINGLE
    assert one_layer(data, estimator="paper").new_var.max() < 2


def test_uneven_batches_count_by_their_size():
    """64 around 3 and 6 around -3, where update_bn finds a mean of about 0."""
    generator = torch.Generator().manual_seed(0)
    parts = (torch.randn(n, 1, generator=generator) for n in (64, 6))
    data = [part + shift for part, shift in zip(parts, (3, -3), strict=True)]
    found, (mean, var) = one_layer(data), truth(torch.cat(data))
    assert relative_error(found.new_mean, mean) < SINGLE
    assert relative_error(found.new_var, var) < SINGLE
    layer = nn.BatchNorm1d(1)
    update_bn(data, layer)
    assert abs(layer.running_mean.item() - mean[0]) > 2
    assert layer.running_var.item() < var[0] / 3


def test_cumulative_is_what_update_bn_computes():
    """The peer, where it is right: no dropout, equal batches. All layers, to rounding."""
    model, data = network(), batches(16, 16, 16)
    model[3].p = 0.0
    plan = bnkit.recalibrate(model, data, estimator="cumulative")
    update_bn(data, model)
    for name in ("1", "5", "9"):
        layer = model.get_submodule(name)
        assert relative_error(plan[name].new_mean, layer.running_mean) < FRAMEWORK
        assert relative_error(plan[name].new_var, layer.running_var) < FRAMEWORK


def test_ema_is_what_training_leaves():
    model, data = network(), batches(16, 9, 16, 16)
    model[3].p, model[5].momentum = 0.0, 0.3
    plan = bnkit.recalibrate(model, data, estimator="ema")
    model.train()
    with torch.no_grad():
        for x in data:
            model(x)
    for name in ("1", "5", "9"):
        layer = model.get_submodule(name)
        assert relative_error(plan[name].new_mean, layer.running_mean) < FRAMEWORK
        assert relative_error(plan[name].new_var, layer.running_var) < FRAMEWORK
    assert plan["1"].mean_margin is None


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5).filter(lambda s: s[0] > 1),
    st.sampled_from(["pooled", "cumulative", "ema"]),
    st.floats(-1e3, 1e3),
)
def test_estimators_agree_with_the_core(sizes, estimator, shift):
    generator = torch.Generator().manual_seed(sum(sizes))
    data = [torch.randn(n, 3, generator=generator, dtype=torch.float64) + shift for n in sizes]
    model = nn.Sequential(nn.BatchNorm1d(3)).double()
    found = bnkit.recalibrate(model, data, estimator=estimator)["0"]
    parts = [
        Moments(len(x), *(v.numpy() for v in (x.mean(0), x.var(0, correction=0) * len(x))))
        for x in data
    ]
    expected = population_statistics(parts, estimator)
    assert relative_error(found.new_mean, expected.mean) < 1e-12
    assert relative_error(found.new_var, expected.var) < 1e-9


@given(st.lists(st.integers(0, 30), max_size=4))
def test_pooled_does_not_depend_on_where_the_data_is_cut(cuts):
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    edges = [0, *sorted({c for c in cuts if 1 < c < 30}), 30]
    data = [x[a:b] for a, b in pairwise(edges)]
    model = nn.Sequential(nn.BatchNorm1d(2)).double()
    found = bnkit.recalibrate(model, data)["0"]
    mean, var = truth(x)
    assert relative_error(found.new_mean, mean) < 1e-13
    assert relative_error(found.new_var, var) < 1e-13


def test_paper_demands_batches_of_one_size():
    data = batches(8, 8, shape=(3,))
    expected = np.mean([x.double().var(0).numpy() for x in data], 0)
    assert relative_error(one_layer(data, estimator="paper").new_var, expected) < SINGLE
    with pytest.raises(InputError, match=r"'0' \(BatchNorm1d\): Algorithm 2 .* got 4 to 8 values"):
        one_layer(batches(8, 4, shape=(3,)), estimator="paper")


def test_a_batch_of_one_is_normalized_with_what_came_before():
    """In the second layer, too: alone it would be a constant."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    found = bnkit.recalibrate(model, [x[:8], x[8:]])
    assert relative_error(found["0"].new_var, truth(x)[1]) < 1e-12
    mean, var = truth((x - x[:8].mean(0)) / (x[:8].var(0, correction=0) + 1e-5).sqrt())
    assert relative_error(found["1"].new_mean, mean) < 1e-12
    assert relative_error(found["1"].new_var, var) < 1e-12


def test_weights_are_counts():
    x = torch.randn(6, 2, 4)
    weights = torch.tensor([1.0, 2, 0, 1, 1, 3])
    found = bnkit.recalibrate(
        nn.Sequential(nn.BatchNorm1d(2)), [(x, weights)], weights=lambda b: b[1]
    )
    repeated = x.repeat_interleave(weights.long(), dim=0)
    mean, var = truth(repeated)
    assert relative_error(found["0"].new_mean, mean) < SINGLE
    assert relative_error(found["0"].new_var, var) < SINGLE
    assert found["0"].count == 32


def test_weights_of_positions_leave_padding_out():
    x = torch.randn(3, 2, 5)
    keep = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    padded = torch.where(keep[:, None], x, torch.nan)
    model = nn.Sequential(nn.BatchNorm1d(2))
    found = bnkit.recalibrate(model, [padded], weights=lambda _: keep.float())["0"]
    mean, var = truth(x.movedim(1, -1)[keep])
    assert relative_error(found.new_mean, mean) < SINGLE
    assert relative_error(found.new_var, var) < SINGLE

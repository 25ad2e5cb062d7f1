"""The confidence intervals hold what they promise, and stopping by them works."""

import numpy as np
import pytest
import torch
from torch import nn

import bnkit


def images(seed, batches=12, n=8):
    """Batches whose pixels are alike within an image; unit variance, mean 0, skewed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        shared = torch.randn(n, 40, 1, 1, generator=generator)
        own = torch.randn(n, 40, 4, 4, generator=generator)
        yield 0.8**0.5 * shared + 0.2**0.5 * own


def test_intervals_cover_the_truth_in_19_of_20_cases():
    """40 channels, 30 times: the share within has a standard error of 0.6 %."""
    inside = []
    for seed in range(30):
        found = bnkit.recalibrate(nn.Sequential(nn.BatchNorm2d(40)), images(seed))["0"]
        inside.append(np.abs(found.new_mean) <= found.mean_margin)
        inside.append(np.abs(found.new_var - 1) <= found.var_margin)
    of_mean, of_var = np.mean(inside[::2]), np.mean(inside[1::2])
    assert 0.93 < of_mean < 0.97
    assert 0.91 < of_var < 0.97  # a variance is skewed, which Student's interval does not know


def test_pixels_do_not_count_as_independent():
    found = bnkit.recalibrate(nn.Sequential(nn.BatchNorm2d(40)), images(0, batches=60))["0"]
    samples, values = 480, found.count
    assert values == 480 * 16
    # Var(mean of an image) = 0.8 + 0.2 / 16: an image counts as 1 / 0.8125 values
    assert 0.8 < np.median(found.independent) / (samples / 0.8125) < 1.2


def test_a_large_mean_does_not_disturb_the_interval():
    model = nn.Sequential(nn.BatchNorm2d(40)).double()
    plain = bnkit.recalibrate(model, [x.double() for x in images(1)])["0"]
    moved = bnkit.recalibrate(model, [x.double() + 1e6 for x in images(1)])["0"]
    np.testing.assert_allclose(moved.mean_margin, plain.mean_margin, rtol=1e-6)
    np.testing.assert_allclose(moved.var_margin, plain.var_margin, rtol=1e-6)


def test_the_interval_by_hand():
    """The ratio estimator for unequal batches, in a few lines of NumPy."""
    sizes = (5, 9, 3, 7)
    data = [torch.randn(n, 1, dtype=torch.float64) for n in sizes]
    found = bnkit.recalibrate(nn.Sequential(nn.BatchNorm1d(1)).double(), data)["0"]
    x, n = np.concatenate([d.numpy().ravel() for d in data]), np.array(sizes)
    means = np.array([d.mean().item() for d in data])
    q = np.array([np.mean((d.numpy() - x.mean()) ** 2) for d in data])
    student = 3.182446305  # t(0.975, 3)
    for margin, scatter in ((found.mean_margin, means - x.mean()), (found.var_margin, q - x.var())):
        se = np.sqrt(4 / 3 * np.sum(n**2 * scatter**2)) / n.sum()
        np.testing.assert_allclose(margin, student * se, rtol=1e-8)


def test_one_batch_has_no_interval():
    found = bnkit.recalibrate(nn.Sequential(nn.BatchNorm1d(2)), torch.randn(16, 2))["0"]
    assert np.isinf(found.mean_margin).all()
    assert found.to_dict()["mean_margin"] == [None, None]


def test_tolerance_stops_when_the_intervals_are_small_enough():
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(64, 4, generator=generator) for _ in range(200)]
    loose, tight = (
        bnkit.recalibrate(nn.Sequential(nn.BatchNorm1d(4)), data, tolerance=t) for t in (0.3, 0.05)
    )
    assert 8 <= loose.batches < tight.batches < 200
    layer = tight["0"]
    assert np.quantile(layer.var_margin / layer.new_var, 0.9) < 0.06
    never = bnkit.recalibrate(nn.Sequential(nn.BatchNorm1d(4)), data, tolerance=1e-6)
    assert never.batches == 200


def test_a_consistent_run_uses_the_batches_of_its_first_pass_only():
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(64, 4, generator=generator) for _ in range(50)]
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    plan = bnkit.recalibrate(model, data, tolerance=0.2, consistent=True)
    assert plan.batches < 50
    assert plan.change < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_statistics_that_are_no_numbers_are_far_away(bad):
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].running_mean[1], model[0].running_var[1] = bad, bad
    found = bnkit.recalibrate(model, torch.randn(64, 2))["0"]
    assert found.d90 == float("inf")
    assert found.r90 == float("inf")
    assert found.to_dict()["d90"] is None


def test_distances_are_those_of_the_doctor():
    model = nn.Sequential(nn.BatchNorm1d(1))
    x = torch.tensor([[0.0], [2.0], [4.0]])
    found = bnkit.recalibrate(model, x)["0"]
    np.testing.assert_allclose(found.moved, 2 / np.sqrt(4 + 1e-5))
    np.testing.assert_allclose(found.rescaled, np.log2((1 + 1e-5) / (4 + 1e-5)), rtol=1e-6)

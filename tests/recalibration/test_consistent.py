"""Statistics that are those of inference, where one pass gives something else."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import InputError, UnsettledWarning
from tests.recalibration.data import batches, eval_inputs, network, truth


def small_batches():
    """Batch norm of batch size 8 behind a nonlinearity, where batch statistics are noisy."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6)
    )
    generator = torch.Generator().manual_seed(0)
    return model, [torch.randn(8, 6, generator=generator).exp() for _ in range(128)]


def distance(plan, model, data):
    """From the statistics of inference with those statistics: the largest share of a variance."""
    mended = copy.deepcopy(model)
    for layer in plan:
        module = mended.get_submodule(layer.name)
        module.running_mean.copy_(torch.from_numpy(layer.new_mean))
        module.running_var.copy_(torch.from_numpy(layer.new_var))
    far = 0.0
    for name, x in eval_inputs(mended, data).items():
        mean, var = truth(x)
        far = max(far, np.abs(plan[name].new_var / var - 1).max())
        far = max(far, (np.abs(plan[name].new_mean - mean) / np.sqrt(var)).max())
    return far


def test_agrees_with_inference_where_one_pass_is_off_by_percents():
    model, data = small_batches()
    assert distance(bnkit.recalibrate(model, data), model, data) > 0.03
    plan = bnkit.recalibrate(model, data, consistent=True)
    assert distance(plan, model, data) < 1e-5
    assert plan.consistent
    assert plan.passes == 3  # two layers, and one pass that finds nothing to change
    assert plan.change < 1e-6


def test_a_deep_network_settles_within_its_depth():
    torch.manual_seed(0)
    parts = [nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()] * 1
    model = nn.Sequential(*(copy.deepcopy(p) for _ in range(8) for p in parts))
    for m in model:
        if isinstance(m, nn.Linear):
            m.reset_parameters()
    data = [torch.randn(8, 6) for _ in range(40)]
    plan = bnkit.recalibrate(model, data, consistent=True)
    assert plan.passes <= 9
    assert distance(plan, model, data) < 1e-5


def test_any_split_within_batches_gives_the_same():
    model, data = small_batches()
    whole = bnkit.recalibrate(model, data, consistent=True)
    other = bnkit.recalibrate(model, list(torch.cat(data).split(37)), consistent=True)
    for a, b in zip(whole, other, strict=True):
        assert np.abs(a.new_var / b.new_var - 1).max() < 2e-6
    once = bnkit.recalibrate(model, list(torch.cat(data).split(37)))
    assert np.abs(once["4"].new_var / whole["4"].new_var - 1).max() > 1e-3


def test_a_shuffling_loader_gives_each_pass_the_same_batches():
    dataset = torch.utils.data.TensorDataset(torch.cat(batches(32)))
    loader = torch.utils.data.DataLoader(dataset, 8, shuffle=True, drop_last=True)
    own = torch.utils.data.DataLoader(
        torch.utils.data.Subset(dataset, range(29)),
        8,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(4),
    )
    for data in (loader, own):
        plan = bnkit.recalibrate(network(), data, consistent=True)
        assert plan.change < 1e-6


class Augmented:
    """Other data in every pass."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield from batches(8, 8, seed=self.passes)


def test_data_that_changes_is_noticed():
    with pytest.warns(UnsettledWarning, match="still changed them by .*random augmentation"):
        plan = bnkit.recalibrate(network(), Augmented(), consistent=True)
    assert plan.passes == 4
    assert plan.change > 1e-3


def test_an_iterator_is_refused():
    with pytest.raises(InputError, match="passed over repeatedly"):
        bnkit.recalibrate(network(), iter(batches(8)), consistent=True)


def test_a_layer_called_twice_is_named_when_it_does_not_settle():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.linear(self.norm(self.linear(x))))

    torch.manual_seed(0)
    with pytest.warns(UnsettledWarning, match=r"'norm' \(BatchNorm1d\) several times"):
        bnkit.recalibrate(Twice(), torch.randn(128, 4), consistent=True)

"""The model is as it was: after a plan, after an error in the middle, after Ctrl-C."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import bnkit
from bnkit.core import InputError, NonFiniteError
from tests.recalibration.data import assert_same_bits, batches, bits, network


class Counting(nn.Module):
    """A layer that keeps a count in a buffer, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.last = x.mean().reshape(1)
        return x


def _drawn():
    return np.random.get_state()[1].copy()  # noqa: NPY002  the generator that others draw from


@pytest.fixture
def model():
    model = network()
    model.insert(0, Counting())
    model[2].eval().requires_grad_(False)
    model[6].momentum = 0.7
    model.register_forward_hook(lambda *_: None)
    model[1].register_forward_pre_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("consistent", [False, True])
def test_a_plan_changes_nothing(model, consistent):
    before, states = bits(model), (random.getstate(), _drawn())
    data = torch.utils.data.DataLoader(torch.cat(batches(24)), 8, shuffle=True)
    plan = bnkit.recalibrate(model, data, consistent=consistent)
    assert_same_bits(model, before)
    assert random.getstate() == states[0]
    assert (_drawn() == states[1]).all()
    assert not plan.applied


def failing(at, error):
    for number, x in enumerate(batches(8, 8, 8, 8)):
        if number == at:
            raise error
        yield x


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk")])
def test_exception_midway_leaves_model_untouched(model, at, error):
    before = bits(model)
    expected = InputError if isinstance(error, Exception) else type(error)
    with pytest.raises(expected) as caught:
        bnkit.recalibrate_(model, failing(at, error))
    assert error in {caught.value, caught.value.__cause__}
    assert_same_bits(model, before)


def test_a_model_that_fails_in_the_middle(model):
    before = bits(model)
    data = [*batches(8, 8), torch.zeros(8, 3, 9, 10)]
    with pytest.raises(InputError, match=r"failed on batch 2 \(Tensor of float32 \(8, 3, 9, 10\)"):
        bnkit.recalibrate_(model, data)
    assert_same_bits(model, before)
    calls = iter(range(100))

    def stops(model, batch):
        if next(calls) == 4:  # in the second pass
            raise KeyboardInterrupt
        return model(batch)

    with pytest.raises(KeyboardInterrupt):
        bnkit.recalibrate_(model, batches(8, 8, 8), forward=stops, consistent=True)
    assert_same_bits(model, before)


def test_nan_is_refused_by_name_and_leaves_the_model(model):
    before = bits(model)
    bad = batches(8, 8)
    bad[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'6' \(BatchNorm2d\): .*NaN or infinity in batch 1"):
        bnkit.recalibrate_(model, bad)  # '2' is frozen: the first that is estimated is '6'
    assert_same_bits(model, before)


def test_batches_with_nan_can_be_left_out():
    bad = batches(8, 8, 8)
    bad[1][0, 0, 0, 0] = float("inf")
    found = bnkit.recalibrate(network(), bad, on_nonfinite="skip")
    expected = bnkit.recalibrate(network(), [bad[0], bad[2]])
    assert (found.left_out, found.batches) == (1, 2)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.new_var, b.new_var)
    with pytest.raises(InputError, match="at least one batch, got 1 with NaN or infinity"):
        bnkit.recalibrate(network(), [bad[1]], on_nonfinite="skip")


def test_only_the_statistics_are_written_and_undone_to_the_bit(model):
    before = bits(model)
    plan = bnkit.recalibrate_(model, batches(8, 8))
    changed = {n for n, (t, values, _) in before[0].items() if not torch.equal(t, values)}
    assert changed == {f"{n}.{s}" for n in ("6", "10") for s in ("running_mean", "running_var")}
    assert plan.applied
    plan.undo()
    assert not plan.applied
    assert_same_bits(model, before)
    with pytest.raises(InputError, match="expected an applied recalibration"):
        plan.undo()


def test_applying_writes_all_or_nothing():
    model = network()
    plan = bnkit.recalibrate(model, batches(8, 8))
    model[9].running_var = torch.ones(7)
    before = bits(model)
    with pytest.raises(InputError, match=r"running_var of shape \(4,\).* got one of shape \(7,\)"):
        plan.apply()
    assert_same_bits(model, before)


def test_half_precision_that_cannot_hold_the_variance_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(2)).half()
    data = [torch.randn(16, 2) * 1e3]
    plan = bnkit.recalibrate(model, data)
    assert plan["0"].new_var.max() > 7e4
    with pytest.raises(InputError, match=r"running_var that torch\.float16 can hold"):
        plan.apply()


def test_frozen_layers_keep_their_statistics_where_update_bn_changes_them():
    model = network()
    model[1].eval()
    other = copy.deepcopy(model)
    plan = bnkit.recalibrate_(model, batches(8, 8))
    assert plan["1"].status == "frozen"
    assert "eval mode while the model is in training mode" in plan["1"].reason
    assert torch.equal(model[1].running_mean, torch.zeros(6))
    assert not model[1].training
    update_bn(batches(8, 8), other)
    assert not torch.equal(other[1].running_mean, torch.zeros(6))  # the peer's defect


def test_dropout_does_not_inflate_the_variance_as_in_update_bn():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
    data = [torch.ones(64, 2)]
    assert bnkit.recalibrate(model, data)["1"].new_var.max() == 0
    update_bn(data, model)
    assert model[1].running_var.min() > 0.5


def test_a_model_in_eval_mode_is_recalibrated_and_stays_there():
    model = network().eval()
    plan = bnkit.recalibrate_(model, batches(8, 8))
    assert [layer.status for layer in plan] == ["estimated"] * 3
    assert not any(m.training for m in model.modules())


def test_undo_leads_back_however_often_it_was_applied():
    model = torch.nn.BatchNorm1d(1)
    plan = bnkit.recalibrate(model, torch.tensor([[1.0], [3.0]]))
    plan.apply().apply()
    assert model.running_mean.tolist() == [2.0]
    plan.undo()
    assert (model.running_mean.tolist(), model.running_var.tolist()) == ([0.0], [1.0])
    plan.apply().undo()
    assert model.running_mean.tolist() == [0.0]

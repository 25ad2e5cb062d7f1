"""Whatever happens, the model and the random generators are what they were, to the bit."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.core.errors import InputError
from bnkit.doctor import probe as probe_module


def everything(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = {n: m.training for n, m in model.named_modules()}
    hooks = {
        n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()
    }
    grads = {n: p.requires_grad for n, p in model.named_parameters()}
    return state, modes, hooks, grads


def assert_same(before, after):
    state, *rest = before
    now, *others = after
    assert rest == others
    assert state.keys() == now.keys()
    for name in state:
        assert torch.equal(state[name], now[name]) or state[name].isnan().any(), name


@pytest.fixture
def generators():
    def read():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    return read


@pytest.mark.parametrize("training", [True, False])
def test_after_a_diagnosis(patients, generators, training):
    model = nn.Sequential(patients.chain(), nn.Dropout(0.5), nn.BatchNorm1d(3)).train(training)
    model[0][1].eval()
    before, drawn = everything(model), generators()
    bnkit.diagnose(model, patients.rows(), "finetune")
    assert_same(before, everything(model))
    assert generators() == drawn


class Failing(nn.Module):
    """Fails at a given call, counted over all copies."""

    calls = 0
    fails_at = 0

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x):
        type(self).calls += 1
        y = self.bn(x)
        if type(self).calls == type(self).fails_at:
            raise RuntimeError("in the middle")
        return y


@pytest.mark.parametrize("call", [1, 2, 3, 4, 18, 19, 35, 37])
def test_when_the_model_fails_in_the_middle(generators, call):
    model = Failing().train()
    Failing.calls, Failing.fails_at = 0, call
    before, drawn = everything(model), generators()
    # the trace is tried again with the whole batch
    expected = nullcontext() if call <= 2 else pytest.raises(InputError, match="in the middle")
    with expected:
        bnkit.diagnose(model, torch.randn(256, 4, generator=torch.Generator()), batch_size=16)
    assert Failing.calls >= call
    assert_same(before, everything(model))
    assert generators() == drawn


def test_when_interrupted(monkeypatch, patients, generators):
    model = patients.chain()
    before, drawn = everything(model), generators()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(probe_module, "_judged", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bnkit.diagnose(model, patients.rows())
    assert_same(before, everything(model))
    assert generators() == drawn


def test_a_watch_leaves_no_hook_when_the_loop_fails(patients):
    model = patients.chain().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = everything(model)
    with pytest.raises(ZeroDivisionError), bnkit.watch(model, optimizer):
        raise ZeroDivisionError
    assert_same(before, everything(model))
    assert not optimizer._optimizer_step_post_hooks


def test_a_model_that_cannot_be_copied_is_refused_clearly():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model.cache = model[0](torch.randn(2, 2))  # not a leaf of the graph
    with pytest.raises(InputError, match=r"deepcopy"):
        bnkit.diagnose(model)

"""What a watched loop shows, and what it does not."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import bnkit


@pytest.fixture
def loop(patients):
    model = patients.chain().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(run=None):
        x = torch.randn(64, 4)
        (model(x) if run is None else run(x)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, optimizer, step


def codes(seen):
    return [f.code for f in seen.diagnose().findings]


def test_a_good_loop_is_silent(loop):
    model, optimizer, step = loop
    with bnkit.watch(model, optimizer) as seen:
        for _ in range(3):
            step()
            model.eval()
            with torch.no_grad():
                model(torch.randn(64, 4))
            model.train()
    assert seen.journal.steps == 3
    assert dict(seen.journal.per_step) == {"1": 1, "4": 1}
    assert codes(seen) == []


def test_recomputed_activations(loop):
    model, optimizer, step = loop
    with bnkit.watch(model, optimizer) as seen:
        step(lambda x: checkpoint(model, x, use_reentrant=False))
    assert dict(seen.journal.in_backward) == {"1": 1, "4": 1}
    assert codes(seen) == ["BN602"]


def test_validation_in_train_mode(loop):
    model, optimizer, step = loop
    with bnkit.watch(model, optimizer) as seen:
        step()
        with torch.no_grad():
            model(torch.randn(64, 4))
    assert codes(seen) == ["BN601"]


def test_mode_not_restored(loop):
    model, optimizer, step = loop
    with bnkit.watch(model, optimizer) as seen:
        step()
        model.eval()
        step()
    assert codes(seen) == ["BN603"]


def test_accumulation_is_a_remark(loop):
    model, optimizer, step = loop
    with bnkit.watch(model, optimizer) as seen:
        for _ in range(2):
            model(torch.randn(64, 4)).sum().backward()
            step()
    assert codes(seen) == []
    from bnkit.doctor import Selection, Severity

    every = Selection(level=Severity.INFO, select=("BN602",))
    (found,) = seen.diagnose(selection=every).findings
    assert found.severity.label == "info"
    assert found.found.numbers["updates_per_step"] == 2


def test_a_probe_before_the_first_step():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bnkit.watch(model, optimizer) as seen:
        with torch.no_grad():
            model(torch.zeros(64, 4))
        model(torch.randn(64, 4)).square().sum().backward()
        optimizer.step()
    assert codes(seen) == ["BN604"]


def test_overflow(loop):
    model, optimizer, step = loop
    with bnkit.watch(model, optimizer) as seen:
        step()
        model(torch.full((64, 4), float("inf")))
    assert seen.journal.poisoned["1"] == 1
    assert codes(seen)[0] == "BN609"

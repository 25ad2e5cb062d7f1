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


def clipped(model):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)


HEALTHY = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), None),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-3), None),
    "clipped": (lambda p: torch.optim.SGD(p, lr=0.1), clipped),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_with_validation_and_the_best_checkpoint(patients, name):
    """No remark either of what a loop may do: averages beside it, evaluations, old states."""
    from bnkit.doctor import Selection, Severity

    make, after_backward = HEALTHY[name]
    model = patients.chain().train()
    optimizer = make(model.parameters())
    average = torch.optim.swa_utils.AveragedModel(model)
    loops = Selection(level=Severity.INFO, select=("BN1", "BN409", "BN5", "BN6"), ignore=("BN101",))
    with bnkit.watch(model, optimizer) as seen:
        for epoch in range(3):
            for x in patients.rows().split(64):
                loss = (model(x)[:, 0] - x.sum(1)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                if after_backward is not None:
                    after_backward(model)
                optimizer.step()
                average.update_parameters(model)
            model.eval()
            with torch.no_grad():
                model(patients.rows())
            if epoch == 0:
                best = {k: v.clone() for k, v in model.state_dict().items()}
            model.train()
        model.load_state_dict(best)
        model.eval()
        with torch.no_grad():
            model(patients.rows())
            average(patients.rows())
        model.train()
    assert seen.journal.steps == 60
    assert seen.journal.exchanged == 0
    assert set(seen.journal.growth) == {"0", "3", "6"}
    assert seen.diagnose(selection=loops).findings == ()


def test_watching_changes_neither_results_nor_gradients(patients):
    results = []
    for look in (False, True):
        model = patients.chain().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(0)
        from contextlib import nullcontext

        with bnkit.watch(model, optimizer) if look else nullcontext():
            for x in patients.rows().split(64)[:5]:
                optimizer.zero_grad()
                (slope,) = torch.autograd.grad(
                    model(x.requires_grad_())[:, 0].sum(), x, create_graph=True
                )
                slope.square().sum().backward()
                optimizer.step()
        results.append([t.clone() for t in model.state_dict().values()])
    assert all(map(torch.equal, *results))

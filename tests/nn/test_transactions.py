"""Statistics that count when committed: by hand, or by the optimizer's step."""

import copy

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import NonFiniteWarning, PolicyError
from tests.nn.family import EAGER, assert_state, batch, make, norms, state


@pytest.mark.parametrize("name", EAGER)
def test_rolled_back_to_the_last_commit(name):
    layer = make(name)
    twin = copy.deepcopy(layer)
    tensors = [id(b) for b in layer.buffers()]
    with bnkit.nn.rollback(layer) as r:
        for seed in range(2):
            assert torch.equal(layer(batch(name, seed)), twin(batch(name, seed)))
        assert_state(layer, state(twin))  # inside, the layer sees what it updates
        r.commit()
        layer(batch(name, 2))
    assert_state(layer, state(twin))
    assert r.commits == 1
    assert [id(b) for b in layer.buffers()] == tensors
    layer(batch(name, 3)), twin(batch(name, 3))
    assert_state(layer, state(twin))
    assert not any("_policy" in norm.__dict__ for norm in norms(layer).values())


def test_an_exception_rolls_back():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    before = state(model)

    def breaks():
        with bnkit.nn.rollback(model):
            model(torch.randn(6, 4))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    assert_state(model, before)


def test_nested_commits_belong_to_the_outer_one():
    layer = make("BatchNorm1d")
    before = state(layer)
    with bnkit.nn.rollback(layer) as outer:
        with bnkit.nn.rollback(layer) as inner:
            layer(batch("BatchNorm1d"))
            inner.commit()
        assert int(layer.num_batches_tracked) == 4
        assert layer.statistics_policy.update == "commit"
        outer.rollback()
        assert_state(layer, before)
        layer(batch("BatchNorm1d"))
    assert_state(layer, before)


def test_a_lazy_layer_that_grows_up_inside():
    model = nn.Sequential(bnkit.nn.LazyBatchNorm1d(), nn.LazyBatchNorm1d())
    with bnkit.nn.rollback(model):
        model(torch.randn(6, 4) + 3)
    for layer in model:
        assert torch.equal(layer.running_mean, torch.zeros(4))
        assert torch.equal(layer.running_var, torch.ones(4))
        assert int(layer.num_batches_tracked) == 0


def test_statistics_that_were_widened_inside():
    layer = make("BatchNorm1d")
    mean = layer.running_mean.clone()
    with bnkit.nn.rollback(layer):
        layer.double()
        layer(batch("BatchNorm1d", dtype=torch.float64))
    torch.testing.assert_close(layer.running_mean, mean.double())


def test_backward_after_the_roll_back():
    """Gradients are those of the pass that was rolled back, in both modes."""
    layer = make("BatchNorm1d").double()
    for training in (True, False):
        layer.train(training)
        x = batch("BatchNorm1d", dtype=torch.float64).requires_grad_()
        expected = torch.autograd.grad(copy.deepcopy(layer)(x).pow(2).sum(), x)[0]
        with bnkit.nn.rollback(layer):
            y = layer(x)
        (got,) = torch.autograd.grad(y.pow(2).sum(), x)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_steps_that_run_change_nothing_about_training(micro_batches):
    def train(around):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), bnkit.nn.BatchNorm1d(4), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(4):
            with around(model, optimizer):
                for _ in range(micro_batches):
                    model(torch.randn(8, 3)).pow(2).mean().backward()
                optimizer.step()
            optimizer.zero_grad()
        return model

    got = train(bnkit.nn.commit_on_step)
    assert_state(got, state(train(lambda *_: torch.enable_grad())))
    assert int(got[1].num_batches_tracked) == 4 * micro_batches


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("around", ["step", "loop"])
def test_a_step_that_the_scaler_skips_leaves_no_trace(fused, around):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), bnkit.nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    reference = bnkit.nn.BatchNorm1d(4)
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    skipped = []

    def run(overflow):
        x = torch.randn(8, 3)
        features = model[0](x).detach()
        loss = model(x).pow(2).mean() * (float("inf") if overflow else 1.0)
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped.append(scaler.get_scale() < scale)
        if not overflow:
            reference(features)
        optimizer.zero_grad()

    overflows = [False, True, True, False]
    if around == "step":
        for overflow in overflows:
            with bnkit.nn.commit_on_step(model, optimizer):
                run(overflow)
    else:
        with bnkit.nn.commit_on_step(model, optimizer) as pending:
            for overflow in overflows:
                run(overflow)
                pending.rollback()
        assert pending.commits == 2
    assert skipped == overflows
    for a, b in zip(model[1].buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert int(model[2].num_batches_tracked) == 2  # torch's own obeys too


def test_without_it_a_skipped_step_counts_and_a_batch_with_infinity_does_not():
    """What the documentation says about GradScaler alone."""
    model = nn.Sequential(bnkit.nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    weight = model[1].weight.clone()
    scaler.scale(model(torch.randn(8, 4)).mean() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model[1].weight, weight)
    assert int(model[0].num_batches_tracked) == 1
    with pytest.warns(NonFiniteWarning):
        model(torch.full((8, 4), float("inf")))
    assert int(model[0].num_batches_tracked) == 1


def test_statistics_enter_when_the_step_runs_and_the_hook_goes():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []

    def breaks():
        with bnkit.nn.commit_on_step(model, optimizer) as pending:
            seen.append(pending)
            model(torch.randn(8, 4)).sum().backward()
            assert pending.commits == 0
            optimizer.step()
            assert pending.commits == 1
            model(torch.randn(8, 4))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    assert int(model[0].num_batches_tracked) == 1
    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()
    assert seen[0].commits == 1


def test_under_compile():
    torch._dynamo.reset()
    layer = make("BatchNorm2d")
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    before = state(layer)
    with bnkit.nn.rollback(layer):
        run(batch("BatchNorm2d"))
        assert int(layer.num_batches_tracked) == 4
    assert_state(layer, before)


def test_what_is_refused():
    layer = bnkit.nn.BatchNorm1d(2)
    with pytest.raises(PolicyError, match=r"expected a torch.optim.Optimizer, got str"):
        bnkit.nn.commit_on_step(layer, "sgd").__enter__()
    with pytest.raises(PolicyError, match=r"rollback: expected a torch.nn.Module, got NoneType"):
        bnkit.nn.rollback(None).__enter__()

"""Activation checkpointing repeats a forward pass; the statistics count it once."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop

import bnkit
from bnkit.core import NonFiniteWarning
from tests.nn.family import EAGER, assert_state, batch, make, state

# use_reentrant
FORMS = [True, False]


def step(model, x, run):
    """One backward pass; gradients of parameters and input."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    run(model, x).pow(2).mean().backward()
    return [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_same_step(model, x, run, *, exact=True, steps=2):
    """Checkpointed and plain training agree in gradients, statistics and counters."""
    twin = copy.deepcopy(model)
    for _ in range(steps):
        expected = step(twin, x, lambda m, v: m(v))
        got = step(model, x, run)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert_state(model, state(twin), exact=exact)


@pytest.mark.parametrize("reentrant", FORMS)
@pytest.mark.parametrize("name", EAGER)
def test_every_layer_counts_once(name, reentrant):
    model = nn.Sequential(make(name), nn.Tanh())
    assert_same_step(model, batch(name), lambda m, x: checkpoint(m, x, use_reentrant=reentrant))


def test_torch_counts_twice_which_is_why():
    """pytorch#96136; the comparison above would see it."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Tanh())
    with pytest.raises(AssertionError, match="running_mean"):
        assert_same_step(
            model, torch.randn(6, 4), lambda m, x: checkpoint(m, x, use_reentrant=False)
        )


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_early_stop_and_cumulative_average(early_stop, momentum):
    # the batch norm comes last, so that its own saving is what stops the repetition
    model = nn.Sequential(nn.Linear(4, 4), bnkit.nn.BatchNorm1d(4, momentum=momentum))
    with set_checkpoint_early_stop(early_stop):
        assert_same_step(
            model, torch.randn(6, 4), lambda m, x: checkpoint(m, x, use_reentrant=False)
        )


@pytest.mark.parametrize("outer", FORMS)
@pytest.mark.parametrize("inner", FORMS)
def test_nested(outer, inner):
    model = nn.ModuleList([make("BatchNorm2d"), make("BatchNormAct2d")])

    def within(first, second, x):
        return second(checkpoint(first, x, use_reentrant=inner).exp())

    def run(m, x):
        return checkpoint(within, *m, x, use_reentrant=outer)

    twin = copy.deepcopy(model)
    x = batch("BatchNorm2d")
    expected = x.clone().requires_grad_()
    twin[1](twin[0](expected).exp()).pow(2).mean().backward()
    got = x.clone().requires_grad_()
    run(model, got).pow(2).mean().backward()
    torch.testing.assert_close(got.grad, expected.grad)
    assert_state(model, state(twin))


@pytest.mark.parametrize("reentrant", FORMS)
def test_sequential_segments_and_two_backward_passes(reentrant):
    model = nn.Sequential(*(make("BatchNorm1d") for _ in range(4)))
    x = batch("BatchNorm1d").requires_grad_()
    y = checkpoint_sequential(model, 2, x, use_reentrant=reentrant)
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    assert [int(layer.num_batches_tracked) for layer in model] == [4] * 4


def test_a_saved_tensor_that_is_looked_at_outside_of_a_backward_pass():
    layer = make("BatchNorm2d")
    x = batch("BatchNorm2d").requires_grad_()
    y = checkpoint(lambda v: layer(v).cos(), x, use_reentrant=False)
    assert y.grad_fn._saved_self.shape == x.shape
    assert int(layer.num_batches_tracked) == 4


@pytest.mark.parametrize("reentrant", FORMS)
def test_the_switch_counts_as_torch_does(reentrant):
    layer = make("BatchNorm2d")
    theirs = nn.BatchNorm2d(4)
    theirs.load_state_dict(layer.state_dict())
    assert bnkit.nn.set_policy_(layer, recompute="update") == ("",)
    x = batch("BatchNorm2d")
    for module in (layer, theirs):
        step(module, x, lambda m, v: checkpoint(lambda u: m(u).cos(), v, use_reentrant=reentrant))
    assert int(layer.num_batches_tracked) == 5
    for a, b in zip(layer.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    bnkit.nn.set_policy_(layer, recompute="skip")
    step(layer, x, lambda m, v: checkpoint(lambda u: m(u).cos(), v, use_reentrant=reentrant))
    assert int(layer.num_batches_tracked) == 6


@pytest.mark.parametrize("reentrant", FORMS)
def test_a_batch_with_nan_is_left_out_once(reentrant):
    layer = bnkit.nn.BatchNorm1d(4)
    x = torch.full((6, 4), float("nan"), requires_grad=True)
    with pytest.warns(NonFiniteWarning):
        checkpoint(lambda v: layer(v).cos(), x, use_reentrant=reentrant).sum().backward()
    assert int(layer.nonfinite_batches) == 1


@pytest.mark.parametrize("reentrant", FORMS)
def test_compiled_around_checkpoint(reentrant):
    torch._dynamo.reset()
    model = nn.Sequential(make("BatchNorm2d"), nn.Tanh())
    run = torch.compile(lambda m, x: checkpoint(m, x, use_reentrant=reentrant), backend="aot_eager")
    assert_same_step(model, batch("BatchNorm2d"), run, exact=False)


@pytest.mark.xfail(reason="compiled code cannot ask the engine; compile around checkpoint instead")
def test_compiled_within_checkpoint():
    torch._dynamo.reset()
    model = nn.Sequential(make("BatchNorm2d"), nn.Tanh())
    run = torch.compile(model, backend="aot_eager")
    x = batch("BatchNorm2d").requires_grad_()
    checkpoint(run, x, use_reentrant=False).sum().backward()
    assert int(model[0].num_batches_tracked) == 4


def test_a_forward_pass_in_a_function_of_the_users_backward():
    """As reversible networks and fairscale repeat it."""
    layer = make("BatchNorm1d")

    class Repeated(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            with torch.no_grad():
                return layer(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(layer(x), x, grad)

    x = batch("BatchNorm1d").requires_grad_()
    Repeated.apply(x).pow(2).sum().backward()
    assert int(layer.num_batches_tracked) == 4
    assert not bnkit.nn.recomputing()


def test_derivatives_of_derivatives_are_no_repetition():
    layer = make("BatchNorm1d").double()
    x = batch("BatchNorm1d", dtype=torch.float64)
    torch.func.hessian(lambda v: layer(v).pow(3).sum())(x)
    assert int(layer.num_batches_tracked) == 4
    torch.func.grad(lambda v: torch.func.grad(lambda u: layer(u).pow(3).sum())(v).sum())(x)
    assert int(layer.num_batches_tracked) == 5

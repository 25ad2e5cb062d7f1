"""Running statistics that take part in the graph: the values of batch norm, and more gradients."""

import copy
import pickle

import pytest
import torch

import bnkit
from bnkit.core import InputError
from tests.tolerances import FLOAT64

SHAPES = {1: (6, 3), 2: (4, 3, 2, 3), 3: (3, 3, 2, 2, 2)}


def make(d=1, **options):
    layer = getattr(bnkit.nn, f"DifferentiableBatchNorm{d}d")
    made = layer(3, dtype=torch.float64, **options)
    with torch.no_grad():
        made.weight.uniform_(0.5, 1.5), made.bias.uniform_(-1, 1)
    return made


def values(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 2 + 1


def close(a, b, tolerance=FLOAT64):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("d", SHAPES)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("unroll", [True, False])
def test_every_value_is_that_of_batch_norm(d, momentum, unroll):
    layer = make(d, momentum=momentum, unroll=unroll)
    plain = getattr(bnkit.nn, f"BatchNorm{d}d")(3, momentum=momentum, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    for _ in range(3):
        x, query = values(*SHAPES[d]).requires_grad_(), values(*SHAPES[d])
        close(layer.train()(x), plain.train()(x), 0)
        close(layer.live.mean, layer.running_mean)
        close(layer.live.var, layer.running_var)
        close(layer.eval()(query), plain.eval()(query))
    for a, b in zip(layer.state_dict().values(), plain.state_dict().values(), strict=True):
        close(a, b, 0)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("unroll", [True, False])
def test_gradients_through_the_statistics(unroll, momentum):
    query = values(2, 3)
    layer = make(momentum=momentum, unroll=unroll)

    def judged(first, second, weight):
        twin = copy.deepcopy(layer)
        del twin.weight
        twin.weight = weight
        twin(first if unroll else first.detach())
        twin(second)
        return twin.eval()(query)

    inputs = [values(6, 3).requires_grad_() for _ in range(2)]
    weight = torch.rand(3, dtype=torch.float64, requires_grad=True)
    if not unroll:
        inputs[0] = inputs[0].detach()
    assert torch.autograd.gradcheck(judged, (*inputs, weight))
    y = judged(*inputs, weight)
    found = torch.autograd.grad(y.sum(), [i for i in inputs if i.requires_grad])
    assert all(g.abs().max() > 1e-6 for g in found)


def test_without_unroll_only_the_last_step_is_in_the_graph():
    for unroll in (True, False):
        layer = make(unroll=unroll)
        xs = [values(6, 3).requires_grad_() for _ in range(2)]
        for x in xs:
            layer(x)
        y = layer.eval()(values(2, 3)).sum()
        first, second = torch.autograd.grad(y, xs, allow_unused=True)
        assert (first is not None) is unroll
        assert second.abs().max() > 0


def test_when_there_is_nothing_live():
    layer = make()
    x = values(6, 3).requires_grad_()
    layer(x)
    assert layer.live is not None
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.live is None
    with torch.no_grad():
        layer.train()(x)
    assert layer.live is None
    for cut in (
        lambda m: m.detach_(),
        lambda m: m.reset_running_stats(),
        lambda m: m.load_state_dict(m.state_dict()),
        lambda m: m.to(torch.float32).to(torch.float64),
    ):
        layer.train()(x)
        assert layer.live is not None
        cut(layer)
        assert layer.live is None
        assert not torch.autograd.grad(layer.eval()(values(2, 3)).sum(), x, allow_unused=True)[0]
    layer.train()(values(6, 3))  # no gradient is asked for
    assert layer.live is None
    assert "live" not in bnkit.nn.DifferentiableBatchNorm1d(3).state_dict()
    untracked = make(track_running_stats=False)
    untracked(x)
    assert untracked.live is None


def test_a_batch_that_is_left_out_leaves_the_live_statistics():
    layer = make()
    bad = values(6, 3)
    bad[0, 0] = float("inf")
    with pytest.warns(bnkit.core.NonFiniteWarning):
        layer(bad.requires_grad_())
    close(layer.live.mean, layer.running_mean, 0)
    assert layer.live.var.isfinite().all()


def test_meta_learning_reaches_the_layer_before():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), bnkit.nn.DifferentiableBatchNorm1d(3))
    plain = torch.nn.Sequential(torch.nn.Linear(4, 3), bnkit.nn.BatchNorm1d(3))
    plain.load_state_dict(model.state_dict())
    support, query = torch.randn(16, 4), torch.randn(8, 4)
    found = []
    for net in (model, plain):
        net.train()(support)
        y = net.eval()(query)
        found.append((y, torch.autograd.grad(y.pow(2).sum(), net[0].weight)[0]))
    close(found[0][0], found[1][0], 1e-5)
    assert (found[0][1] - found[1][1]).abs().max() > 1e-2
    before = copy.deepcopy(plain.state_dict())

    def loss(weight):
        plain.load_state_dict(before)
        h = torch.nn.functional.linear(support, weight, plain[0].bias).double()
        mean, var = h.mean(0), h.var(0)
        mean, var = (0.1 * mean, 0.9 + 0.1 * var)
        q = torch.nn.functional.linear(query, weight, plain[0].bias).double()
        return ((q - mean) / torch.sqrt(var + 1e-5)).pow(2).sum()

    weight = model[0].weight
    expected = torch.autograd.grad(loss(weight), weight)[0]
    close(found[0][1], expected, 1e-3)


def test_back_to_plain_and_bad_input():
    layer = make()
    layer(values(6, 3).requires_grad_())
    with pytest.raises(InputError, match="should contain 5 elements"):
        layer.eval()(values(6, 5))
    with pytest.raises(InputError, match="expected 2D or 3D input"):
        layer(values(6, 3, 2, 2))
    bnkit.nn.plain_(layer)
    assert type(layer) is bnkit.nn.BatchNorm1d
    layer(values(6, 3))


def test_compile():
    torch._dynamo.reset()
    layer = make()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager")
    x = values(6, 3).requires_grad_()
    close(compiled(x), layer(x), 1e-9)
    close(compiled._orig_mod.running_var, layer.running_var, 1e-9)

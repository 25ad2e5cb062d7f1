"""Group, layer and instance norm for comparison: the learned weights stay, and the way back."""

import copy
import pickle
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit.core import ConversionError, InputError
from bnkit.nn import replace_, restore_
from tests.nn.family import assert_state, make, state
from tests.nn.test_replace import BatchNormAct2d, Own, Tagged

NORMS = ["group", "layer", "instance"]
GROUPS = {"group": 4, "layer": 1, "instance": 8}


class Speaks(nn.BatchNorm2d):
    def describe(self):
        return super().extra_repr()


def network(own):
    torch.manual_seed(0)
    bn = bnkit.nn.BatchNorm2d(8, eps=1e-3) if own else nn.BatchNorm2d(8, eps=1e-3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), bn, nn.ReLU())
    model(torch.randn(4, 3, 6, 6) + 1)
    with torch.no_grad():
        bn.weight.uniform_(0.5, 2)
        bn.bias.normal_()
    return model


def by_hand(x, groups, layer):
    """Wu & He 2018, equations 1 to 7: one mean and variance for each sample and group."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, correction=0, keepdim=True)
    xhat = ((grouped - mean) / (var + layer.eps).sqrt()).reshape(x.shape)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return xhat * layer.weight.reshape(shape) + layer.bias.reshape(shape)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_the_numbers_and_the_way_back(norm, own):
    model = network(own)
    twin, x = copy.deepcopy(model), torch.randn(4, 3, 6, 6)
    bn, kind = model[1], type(model[1])
    attributes = {k for k in bn.__dict__ if k != "_modules"}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert replace_(model, to=norm, num_groups=4).replaced == ("1",)
    assert model[1] is bn
    assert isinstance(bn, nn.GroupNorm)
    assert not isinstance(bn, nn.modules.batchnorm._BatchNorm)
    assert bn.num_groups == GROUPS[norm]
    expected = by_hand(model[0](x), GROUPS[norm], bn).relu()
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(x), expected)
    reference = nn.GroupNorm(GROUPS[norm], 8)
    assert list(bn.state_dict()) == list(reference.state_dict())
    reference.load_state_dict(bn.state_dict())
    assert repr(bn) == repr(nn.GroupNorm(GROUPS[norm], 8, eps=1e-3))
    model.train()(x).sum().backward()
    optimizer.step()
    assert replace_(model, to="batch").replaced == ("1",)
    assert type(bn) is kind
    assert {k for k in bn.__dict__ if k != "_modules"} == attributes
    for name, buffer in twin[1].named_buffers():
        assert torch.equal(bn.get_buffer(name), buffer)
    assert not torch.equal(bn.weight, twin[1].weight)  # learned meanwhile, and kept
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(x), twin(x))


def test_from_one_to_the_other_and_all_the_way_back():
    model = network(own=False)
    twin = copy.deepcopy(model)
    replace_(model)
    for norm in NORMS:
        assert replace_(model, to=norm, num_groups=4).replaced == ("1",)
        assert model[1].num_groups == GROUPS[norm]
    assert restore_(model).replaced == ("1",)
    assert type(model[1]) is nn.BatchNorm2d
    assert_state(model, state(twin))
    assert replace_(model, to="batch").replaced == ()


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(64, 32), (128, 32), (48, 24), (100, 25), (32, 16), (7, 1), (2, 1), (1, 1)],
)
def test_how_many_groups(channels, groups):
    layer = nn.BatchNorm2d(channels)
    replace_(layer, to="group")
    assert layer.num_groups == groups


def test_subclasses_keep_their_methods_and_their_tail():
    torch.manual_seed(0)
    model = nn.Sequential(Tagged(4), BatchNormAct2d(4), bnkit.nn.BatchNormAct2d(4, act="silu"))
    assert replace_(model[:2]).replaced == ("0", "1")
    replace_(model, to="group", num_groups=2)
    assert model[0].describe() == "tagged 4"
    assert type(model[0]).__name__ == "Tagged"
    x = torch.randn(4, 4, 5, 5)
    y = F.group_norm(F.group_norm(x, 2), 2)
    shortcut = torch.randn(4, 4, 5, 5)
    torch.testing.assert_close(model[:2](x), F.leaky_relu(y, 0.1))
    torch.testing.assert_close(model[2](x, shortcut), F.silu(F.group_norm(x, 2) + shortcut))
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert [type(m) for m in copied] == [type(m) for m in model]
    assert torch.equal(copied(x), model(x))
    replace_(copied, to="batch")
    assert isinstance(copied[0], Tagged)
    assert isinstance(copied[0], bnkit.nn.BatchNorm2d)
    assert copied[0].describe() == "tagged 4"
    assert type(copied[2]) is bnkit.nn.BatchNormAct2d
    restore_(copied)
    assert [type(m) for m in copied[:2]] == [Tagged, BatchNormAct2d]


def test_moves_while_it_is_exchanged():
    layer = make("BatchNorm2d")
    replace_(layer, to="layer")
    layer.double()
    replace_(layer, to="batch")
    assert layer.running_mean.dtype == torch.float64
    layer(torch.randn(4, 4, 3, 3, dtype=torch.float64))
    assert int(layer.num_batches_tracked) == 4


def test_gradients_compile_and_export():
    layer = make("BatchNorm2d").double()
    replace_(layer, to="group", num_groups=2)
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    torch._dynamo.reset()
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(x), layer(x))
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    torch.testing.assert_close(program.module()(x[:2]), layer(x[:2]))


@pytest.mark.parametrize(("norm", "shape"), [("instance", (6, 4)), ("group", (6, 4, 1, 1))])
def test_one_value_in_a_group_is_refused(norm, shape):
    """torch.nn.GroupNorm returns the bias here, without a word."""
    model = nn.Sequential(nn.Identity(), make(f"BatchNorm{max(len(shape) - 2, 1)}d"))
    replace_(model, to=norm, num_groups=4)
    model[1].num_groups = 4
    with pytest.raises(InputError, match=r"^'1' \(GroupNorm\): expected more than 1 value in each"):
        model(torch.randn(shape))
    assert prod(shape[1:]) == 4


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Own(4), "'1': Own has a forward pass of its own"),
        (Speaks(4), r"'1': Speaks.describe calls super\(\) of batch norm"),
        (nn.SyncBatchNorm(4), "'1': SyncBatchNorm has a forward pass of its own"),
        (nn.LazyBatchNorm2d(), "'1': LazyBatchNorm2d has not seen its first input"),
    ],
)
def test_what_would_be_lost_is_refused(layer, reason):
    model = nn.Sequential(nn.BatchNorm2d(4), layer)
    with pytest.raises(ConversionError, match=reason):
        replace_(model, to="group")
    assert type(model[0]) is nn.BatchNorm2d
    result = replace_(model, to="group", strict=False)
    assert result.replaced == ("0",)
    assert list(result.kept) == ["1"]


def test_policies_are_not_lost():
    model = nn.Sequential(bnkit.nn.BatchNorm2d(4), bnkit.nn.BatchNorm2d(4))
    bnkit.nn.freeze_(model[1])
    with pytest.raises(ConversionError, match="'1': it is frozen or has a statistics policy"):
        replace_(model, to="group")
    with pytest.raises(ConversionError, match=r"restore_: .* got '1' \(BatchNorm2d\)"):
        restore_(model)
    assert type(model[0]) is bnkit.nn.BatchNorm2d
    bnkit.nn.unfreeze_(model)
    assert restore_(model).replaced == ("0", "1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "batchnorm"}, r"to must be 'bnkit', 'batch', .*, got 'batchnorm'"),
        ({"to": "group", "num_groups": 0}, "num_groups must be an integer of at least 1, got 0"),
        ({"to": "group", "num_groups": 2.0}, "num_groups must be an integer .*, got 2.0"),
    ],
)
def test_bad_words(options, message):
    model = nn.Sequential(nn.BatchNorm2d(4))
    with pytest.raises(InputError, match=message):
        replace_(model, **options)
    assert type(model[0]) is nn.BatchNorm2d

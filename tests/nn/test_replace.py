"""replace_ and restore_: the same objects, nothing lost, refused where something would be."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit.core import ConversionError
from bnkit.nn import replace_, restore_


class Tagged(nn.BatchNorm2d):
    """A subclass without a forward pass of its own."""

    def describe(self):
        return f"tagged {self.num_features}"


class BatchNormAct2d(nn.BatchNorm2d):
    """Like timm's: torch's forward pass written out, then drop and act."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.LeakyReLU(0.1)

    def forward(self, x):
        self._check_input_dim(x)
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return self.act(self.drop(x))


class Doubled(BatchNormAct2d):
    """Looks like timm's, computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def network(*extra):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3, eps=1e-3), nn.ReLU(), *extra
    )


def run(model, x):
    y = model(x)
    return [y, *model.state_dict().values()]


def same(model, twin, x=None):
    x = torch.randn(4, 3, 8, 8) if x is None else x
    for a, b in zip(run(model, x), run(twin, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_same_objects_same_numbers():
    model = network()
    twin = copy.deepcopy(model)
    bn = model[1]
    parameters, buffers = dict(bn.named_parameters()), dict(bn.named_buffers())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    result = replace_(model)
    assert result.replaced == ("1",)
    assert result.kept == {}
    assert model[1] is bn
    assert type(bn) is bnkit.nn.BatchNorm2d
    assert all(dict(bn.named_parameters())[k] is v for k, v in parameters.items())
    assert all(dict(bn.named_buffers())[k] is v for k, v in buffers.items())
    assert any(p is bn.weight for p in optimizer.param_groups[0]["params"])
    same(model, twin)
    same(model.eval(), twin.eval())


@pytest.mark.parametrize("training", [True, False])
def test_round_trip_keeps_everything(training):
    model = network().double().train(training)
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append("forward"))
    model[1].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[1].weight.requires_grad_(False)
    before = set(model[1].__dict__)
    text = repr(model)
    replace_(model)
    assert model[1].training is training
    model(torch.randn(4, 3, 8, 8, dtype=torch.float64)).sum().backward()
    assert calls == ["forward", "backward"]
    assert not model[1].weight.requires_grad
    assert model[1].running_mean.dtype == torch.float64
    restore_(model)
    assert type(model[1]) is nn.BatchNorm2d
    assert repr(model) == text
    assert set(model[1].__dict__) == before
    assert "nonfinite_batches" not in dict(model.named_buffers())
    model(torch.randn(4, 3, 8, 8, dtype=torch.float64))


def test_root_shared_and_lazy_layers():
    root = nn.BatchNorm1d(3)
    assert replace_(root).replaced == ("",)
    assert type(root) is bnkit.nn.BatchNorm1d
    bn = nn.BatchNorm2d(4)
    shared = nn.Sequential(bn, nn.ReLU(), bn)
    assert replace_(shared).replaced == ("0",)
    assert shared[2] is shared[0]
    lazy = nn.Sequential(nn.LazyBatchNorm2d())
    replace_(lazy)
    lazy(torch.randn(2, 3, 4, 4))
    assert type(lazy[0]) is bnkit.nn.BatchNorm2d


def test_subclass_that_inherits_its_forward():
    model = network(Tagged(4))
    twin = copy.deepcopy(model)
    replace_(model)
    assert isinstance(model[3], Tagged)
    assert isinstance(model[3], bnkit.nn.BatchNorm2d)
    assert model[3].describe() == "tagged 4"
    same(model, twin)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert type(copied[3]) is type(model[3])
    same(copied, model)
    restore_(model)
    assert type(model[3]) is Tagged


def test_timm_like_subclass_is_proved_on_a_probe():
    model = network(BatchNormAct2d(4))
    twin = copy.deepcopy(model)
    state = torch.get_rng_state()
    assert replace_(model).replaced == ("1", "3")
    torch.testing.assert_close(torch.get_rng_state(), state)
    assert isinstance(model[3], bnkit.nn.BatchNorm2d)
    same(model, twin)
    same(model.eval(), twin.eval())
    copied = pickle.loads(pickle.dumps(model))
    same(copied, model)
    restore_(model)
    assert type(model[3]) is BatchNormAct2d


@pytest.mark.parametrize("layer", [Own, Doubled])
def test_behaviour_is_refused_not_dropped(layer):
    model = network(layer(4))
    with pytest.raises(
        ConversionError, match=f"'3': {layer.__name__} has a forward pass of its own"
    ):
        replace_(model)
    assert type(model[1]) is nn.BatchNorm2d  # nothing was changed
    result = replace_(model, strict=False)
    assert result.replaced == ("1",)
    assert list(result.kept) == ["3"]
    assert type(model[3]) is layer


def test_parametrized_layers_are_refused():
    model = network()
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    with pytest.raises(ConversionError, match="remove the parametrization first"):
        replace_(model)


def test_narrow_statistics_are_widened_and_narrowed_back():
    model = network().bfloat16()
    mean = model[1].running_mean.fill_(0.7).clone()
    replace_(model)
    assert model[1].running_mean.dtype == torch.float32
    restore_(model)
    assert model[1].running_mean.dtype == torch.bfloat16
    torch.testing.assert_close(model[1].running_mean, mean, rtol=0, atol=0)


def test_restore_turns_our_own_layers_into_torchs():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(3, on_nonfinite="raise"))
    assert restore_(model).replaced == ("0",)
    assert type(model[0]) is nn.BatchNorm1d
    assert "on_nonfinite" not in repr(model)


def test_a_model_without_batch_norm():
    assert replace_(nn.Sequential(nn.Linear(2, 2))).replaced == ()

"""Frozen layers: inference in the middle of training, for good or for a while, without loss."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, update_bn

import bnkit
from bnkit.core import FrozenWarning, PolicyError
from tests.nn.family import EAGER, LAYERS, assert_state, batch, make, norms, small, state


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), bnkit.nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )


def images(seed=0):
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", EAGER)
def test_frozen_layers_are_inference_through_train(name):
    layer, x = make(name), batch(name)
    before, expected = state(layer), copy.deepcopy(layer).eval()(x)
    found = norms(layer)
    assert bnkit.nn.freeze_(layer) == tuple(found)
    layer.train()
    assert not any(norm.training for norm in found.values())
    assert torch.equal(layer(x), expected)
    for norm in found.values():
        norm.training = True  # by hand, as some trainers do
    assert torch.equal(layer(x), expected)
    for norm in found.values():
        with pytest.warns(FrozenWarning):
            norm.reset_running_stats()
    assert_state(layer, before)
    assert bnkit.nn.unfreeze_(layer) == tuple(found)
    assert layer.training
    reference = make(name)
    reference.load_state_dict(before)
    assert torch.equal(layer(x), reference(x))
    assert_state(layer, state(reference))
    for norm in found.values():
        assert "_thaw" not in norm.__dict__
        assert "_policy" not in norm.__dict__


@pytest.mark.parametrize("name", EAGER)
def test_gradients_of_a_frozen_layer(name):
    layer = make(name).double()
    bnkit.nn.freeze_(layer)
    x = small(name)[:2].requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), check_batched_grad=True)


@pytest.mark.parametrize("asked", [True, False])
def test_unfreezing_gives_the_mode_last_asked_for(asked):
    model = network().train(not asked)
    bnkit.nn.freeze_(model)
    model.train(asked)
    assert not model[1].training
    assert bnkit.nn.policy(model)["1"].mode == ("train" if asked else "eval")
    bnkit.nn.unfreeze_(model)
    assert model[1].training is asked
    assert model.training is asked


@pytest.mark.parametrize("weight", [True, False])
def test_affine_is_frozen_and_comes_back(weight):
    model = network()
    model(images())
    model[1].weight.requires_grad_(weight)
    bnkit.nn.freeze_(model)
    bnkit.nn.freeze_(model, affine=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, weight_decay=0.1)
    parameters = model[1].weight.clone(), model[1].bias.clone()
    model(images()).pow(2).sum().backward()
    optimizer.step()
    assert torch.equal(model[1].weight, parameters[0])
    assert torch.equal(model[1].bias, parameters[1])
    bnkit.nn.unfreeze_(model)
    assert (model[1].weight.requires_grad, model[1].bias.requires_grad) == (weight, True)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_frozen_and_thaw(how):
    layer = make("BatchNormAct2d")
    bnkit.nn.freeze_(layer, affine=True)
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert not twin.train().training
    x = batch("BatchNormAct2d")
    assert torch.equal(twin(x), layer(x))
    bnkit.nn.unfreeze_(twin)
    assert twin.training
    assert twin.weight.requires_grad
    assert not layer.training
    assert not layer.weight.requires_grad


@pytest.mark.parametrize("name", ["BatchNorm2d", "BatchNormAct1d", "BatchNorm3d"])
def test_compiled_and_exported(name):
    torch._dynamo.reset()
    layer, x = make(name), batch(name)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    run(x)
    before = state(layer)
    bnkit.nn.freeze_(layer)
    layer.train()
    torch.testing.assert_close(run(x), copy.deepcopy(layer).eval()(x))
    assert_state(layer, before)
    program = torch.export.export(copy.deepcopy(layer), (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    bnkit.nn.unfreeze_(layer)
    run(x)
    assert int(layer.num_batches_tracked) == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_moves(dtype):
    layer = make("BatchNorm2d")
    bnkit.nn.freeze_(layer)
    layer.to(dtype).train()
    x = batch("BatchNorm2d").to(dtype)
    before = state(layer)
    assert layer(x).dtype == dtype
    assert_state(layer, before)


def test_loading_into_a_frozen_layer():
    source, layer = make("BatchNorm1d"), bnkit.nn.BatchNorm1d(4)
    bnkit.nn.freeze_(layer)
    layer.load_state_dict(source.state_dict())
    x = batch("BatchNorm1d")
    assert torch.equal(layer.train()(x), source.eval()(x))


@pytest.mark.parametrize("name", [n for n in LAYERS if n.startswith("Lazy")])
def test_lazy_layers_stay_frozen_when_they_grow_up(name):
    model = nn.Sequential(make(name))
    bnkit.nn.freeze_(model)
    model.train()
    x = batch(name)
    torch.testing.assert_close(model(x), x / (1 + 1e-5) ** 0.5)
    model.train()
    assert int(model[0].num_batches_tracked) == 0
    bnkit.nn.unfreeze_(model)
    model(x)
    assert int(model[0].num_batches_tracked) == 1


def test_for_a_while_and_when_something_breaks():
    model = network()
    model(images())
    before = state(model)

    def breaks():
        with bnkit.nn.frozen(model, affine=True):
            model.train()(images(1))
            assert not model[1].weight.requires_grad
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    assert_state(model, before)
    assert model[1].training
    assert model[1].weight.requires_grad
    assert model[1].__dict__.keys() == bnkit.nn.BatchNorm2d(4).__dict__.keys()


def test_a_while_within_a_switch():
    model = network()
    bnkit.nn.freeze_(model)
    with bnkit.nn.frozen(model, affine=True):
        model.eval()
    assert not model[1].training
    assert model[1].weight.requires_grad
    assert bnkit.nn.policy(model)["1"].normalizes_with == "running (frozen)"
    bnkit.nn.unfreeze_(model)
    assert not model[1].training  # eval() was asked for last
    with bnkit.nn.frozen(model):
        bnkit.nn.unfreeze_(model)
        model.train()
    assert model[1].training


def test_only_the_part_that_is_meant():
    model = nn.ModuleDict({"backbone": network(), "head": bnkit.nn.BatchNorm1d(2)})
    assert bnkit.nn.freeze_(model["backbone"]) == ("1",)
    model.train()
    assert not model["backbone"][1].training
    assert model["head"].training
    assert bnkit.nn.unfreeze_(model) == ("backbone.1",)


def test_update_bn_of_torch_spares_frozen_layers():
    """torch.optim.swa_utils.update_bn resets every batch norm, frozen by .eval() or not."""
    model = nn.Sequential(bnkit.nn.BatchNorm1d(3), bnkit.nn.BatchNorm1d(3))
    model(torch.randn(16, 3) + 5)
    bnkit.nn.freeze_(model[0])
    before = state(model[0])
    with pytest.warns(FrozenWarning, match="the layer is frozen"):
        update_bn([torch.randn(16, 3)], model)
    assert_state(model[0], before)
    assert int(model[1].num_batches_tracked) == 1


def test_averaged_model():
    model = network()
    model(images())
    bnkit.nn.freeze_(model)
    average = AveragedModel(model, use_buffers=True)
    average.update_parameters(model)
    average.train()
    before = state(average)
    average(images(1))
    assert_state(average, before)
    torch.testing.assert_close(average.module[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize("affine", [True, False])
def test_distributed_data_parallel(affine, tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = network()
        model(images())
        bnkit.nn.freeze_(model, affine=affine)
        statistics = model[1].running_mean.clone()
        parallel = DistributedDataParallel(model).train()
        for seed in range(2):
            parallel(images(seed)).sum().backward()
        assert torch.equal(model[1].running_mean, statistics)
        assert (model[1].weight.grad is None) is affine
    finally:
        torch.distributed.destroy_process_group()


def test_what_cannot_be_frozen_is_named_and_nothing_changes():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    message = r"^freeze_: expected bnkit's layers, got '1' \(BatchNorm1d\) which would thaw .*"
    with pytest.raises(PolicyError, match=message + re.escape("replace_(model)")):
        bnkit.nn.freeze_(model)
    assert model[0].training
    with (
        pytest.raises(PolicyError, match=r"^frozen: expected bnkit's layers"),
        bnkit.nn.frozen(model),
    ):
        pytest.fail("entered")
    untracked = nn.Sequential(
        bnkit.nn.BatchNorm1d(2), bnkit.nn.BatchNorm1d(2, track_running_stats=False)
    )
    with pytest.raises(PolicyError, match=r"'1' \(BatchNorm1d\) with track_running_stats=False"):
        bnkit.nn.freeze_(untracked)
    assert untracked[0].training
    with pytest.raises(PolicyError, match=r"^freeze_: expected a torch.nn.Module, got list"):
        bnkit.nn.freeze_([model])


def test_policies_of_frozen_layers_cannot_be_assigned():
    layer = bnkit.nn.BatchNorm1d(2)
    with pytest.raises(AttributeError):
        layer.statistics_policy = bnkit.nn.StatisticsPolicy(normalize="running")
    with pytest.raises(PolicyError, match="normalize must be one of 'batch', 'running', got 'x'"):
        bnkit.nn.StatisticsPolicy(normalize="x")

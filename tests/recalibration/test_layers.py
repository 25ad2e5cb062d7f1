"""Every kind of layer, and every place that a layer can have."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import InputError, PolicyError
from tests.recalibration.data import batches, network, truth
from tests.tolerances import relative_error

SINGLE = 1e-6
SHAPES = {"1d": (6, 4, 5), "2d": (6, 4, 3, 3), "3d": (4, 4, 2, 3, 2)}
KINDS = [
    f"{kind}{dimension}"
    for kind in (
        "BatchNorm",
        "BatchNormAct",
        "BatchRenorm",
        "DifferentiableBatchNorm",
        "GhostBatchNorm",
        "MaskedBatchNorm",
    )
    for dimension in SHAPES
]


@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_member_of_the_family(kind, consistent):
    options = {"virtual_batch_size": 2} if kind.startswith("Ghost") else {}
    model = nn.Sequential(getattr(bnkit.nn, kind)(4, **options))
    data = [torch.randn(SHAPES[kind[-2:]]) + i for i in range(3)]
    plan = bnkit.recalibrate_(model, data, consistent=consistent)
    mean, var = truth(torch.cat(data))
    assert relative_error(plan["0"].new_mean, mean) < SINGLE
    assert relative_error(model[0].running_var, var) < SINGLE


def test_batch_norm_of_other_axes():
    model = nn.Sequential(bnkit.nn.BatchNorm((3, 5), axis=(1, 3)))
    x = torch.randn(4, 3, 6, 5)
    plan = bnkit.recalibrate_(model, [x, x + 1])
    both = torch.cat([x, x + 1]).double()
    assert plan["0"].new_var.shape == (3, 5)
    assert relative_error(model[0].running_mean, both.mean((0, 2))) < SINGLE
    assert relative_error(model[0].running_var, both.var((0, 2))) < SINGLE


def test_masks_that_the_model_gives():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = bnkit.nn.MaskedBatchNorm1d(2)

        def forward(self, x, mask):
            return self.norm(x, mask)

    x, keep = torch.randn(3, 2, 5), torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    x = torch.where(keep[:, None], x, torch.nan)
    found = bnkit.recalibrate(Model(), [{"x": x, "mask": keep, "labels": 3}])["norm"]
    mean, var = truth(x.movedim(1, -1)[keep])
    assert relative_error(found.new_mean, mean) < SINGLE
    assert relative_error(found.new_var, var) < SINGLE
    assert found.count == 10


def test_domains_get_their_own():
    model = nn.Sequential(bnkit.nn.DomainBatchNorm1d(2, domains=("a", "b"), default="a"))
    x = torch.randn(8, 2)
    plan = bnkit.recalibrate(model, [x])
    assert plan["0.domain_a"].status == "estimated"
    assert plan["0.domain_b"].status == "unreached"
    with bnkit.nn.domain(model, "b"):
        assert bnkit.recalibrate(model, [x])["0.domain_b"].count == 8


def test_a_shared_layer_gets_all_its_inputs_together():
    """fvcore asserts here."""

    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x) + self.norm(3 * x + 1)

    x = torch.randn(16, 2)
    found = bnkit.recalibrate(Twins(), [x[:9], x[9:]])["norm"]
    mean, var = truth(torch.cat([x, 3 * x + 1]))
    assert relative_error(found.new_var, var) < SINGLE
    assert relative_error(found.new_mean, mean) < SINGLE
    assert (found.calls, found.count) == (2, 32)
    assert "shared: 2 calls per batch" in "".join(found.cells())


def test_unreached_layer_keeps_statistics():
    """fvcore makes mean 0 and variance 0 of it."""

    class Aux(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aux = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.main(x) if not self.training else self.aux(x)

    model = Aux()
    model.aux.running_var.fill_(7)
    plan = bnkit.recalibrate_(model, [torch.randn(8, 2)])
    assert plan["aux"].status == "unreached"
    assert model.aux.running_var.tolist() == [7, 7]
    assert "no batch came by" in str(plan)
    with pytest.raises(InputError, match="expected an estimate, got none: unreached"):
        _ = plan["aux"].moved


def test_a_layer_without_statistics_is_told_not_touched():
    """fvcore fails here."""
    model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(2))
    plan = bnkit.recalibrate_(model, [torch.randn(8, 2)])
    assert [layer.status for layer in plan] == ["untracked", "estimated"]
    assert model[0].running_mean is None


def test_frozen_by_bnkit():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(2), bnkit.nn.BatchNorm1d(2))
    bnkit.nn.freeze_(model[0])
    plan = bnkit.recalibrate_(model, [torch.randn(8, 2) + 3])
    assert [layer.status for layer in plan] == ["frozen", "estimated"]
    assert model[0].running_mean.tolist() == [0, 0]
    # the second layer was given what the frozen one makes of the data
    assert plan["1"].new_mean.min() > 2
    with pytest.raises(PolicyError, match="Unfreeze it"):
        bnkit.recalibrate(model, [torch.randn(8, 2)], layers=["0"])
    layer = bnkit.nn.BatchNorm(2, trainable=False)
    assert bnkit.recalibrate(layer, [torch.randn(8, 2)])[""].status == "frozen"


class FrozenBatchNorm2d(nn.Module):
    """As in torchvision and detectron2: four buffers, no batch norm of torch."""

    eps = 1e-5

    def __init__(self, n):
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((n,), float(value)))

    def forward(self, x):
        scale = self.weight / (self.running_var + self.eps).sqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class Foreign(FrozenBatchNorm2d):
    """A batch norm of another library, known by its buffers alone."""


Foreign.__name__ = "ForeignNorm"


def test_layers_of_other_libraries():
    model = nn.Sequential(
        FrozenBatchNorm2d(3), Foreign(3), nn.InstanceNorm2d(3, track_running_stats=True)
    )
    data = batches(8, 8)
    plan = bnkit.recalibrate_(model, data)
    assert [layer.name for layer in plan] == ["0", "1"]
    assert [layer.status for layer in plan] == ["frozen", "estimated"]
    assert relative_error(model[1].running_var, truth(torch.cat(data))[1]) < 2e-5  # behind eps


class Tripled(nn.BatchNorm2d):
    """A subclass with a forward pass of its own."""

    def forward(self, x):
        return 3 * super().forward(x)


def test_a_subclass_with_its_own_forward_keeps_it():
    model = nn.Sequential(Tripled(3), nn.BatchNorm2d(3))
    plan = bnkit.recalibrate(model, batches(16))
    np.testing.assert_allclose(plan["1"].new_var, 9, rtol=1e-2)


def test_a_forward_method_of_an_instance_stays():
    model = network()
    layer = model[1]
    layer.forward = lambda x: 2 * nn.BatchNorm2d.forward(layer, x)
    own = layer.forward
    plan = bnkit.recalibrate(model, batches(8))
    assert layer.forward is own
    plain = bnkit.recalibrate(network(), batches(8))
    assert relative_error(plan["1"].new_var, plain["1"].new_var) < SINGLE
    assert plan["5"].new_var.max() > 2 * plain["5"].new_var.max()


def test_torch_synchronized_batch_norm_on_the_cpu():
    model = nn.Sequential(nn.SyncBatchNorm(3))
    data = batches(8, 8)
    assert (
        relative_error(bnkit.recalibrate(model, data)["0"].new_var, truth(torch.cat(data))[1])
        < SINGLE
    )


def test_names_choose_layers():
    model = nn.Sequential(network(), nn.BatchNorm1d(4))
    model[0][1].eval()
    plan = bnkit.recalibrate(model, batches(8), layers=["0.1", "1"])
    assert {n.name: n.status for n in plan} == {
        "0.1": "estimated",  # named by its user, so not taken for frozen
        "0.5": "not asked for",
        "0.9": "not asked for",
        "1": "estimated",
    }
    assert [n.status for n in bnkit.recalibrate(model, batches(8), layers="0.9")].count(
        "estimated"
    ) == 1
    with pytest.raises(PolicyError, match=r"got '2'\. The batch norms are: '0\.1', "):
        bnkit.recalibrate(model, batches(8), layers=["2"])


def test_averaged_weights_and_compiled_models():
    data = batches(8, 8)
    expected = bnkit.recalibrate(network(), data)
    averaged = torch.optim.swa_utils.AveragedModel(network())
    compiled = torch.compile(network(), backend="eager")
    compiled(data[0])
    inner = network()
    inner.compile(backend="eager")
    inner(data[0])
    for model, prefix in ((averaged, "module."), (compiled, ""), (inner, "")):
        plan = bnkit.recalibrate(model, data)
        for layer in expected:
            assert relative_error(plan[prefix + layer.name].new_var, layer.new_var) == 0
    parallel = nn.DataParallel(network())
    assert (
        relative_error(bnkit.recalibrate(parallel, data)["9"].new_var, expected["9"].new_var) == 0
    )


def test_sixteen_bits():
    model = network().bfloat16()
    data = [x.bfloat16() for x in batches(16, 16)]
    plan = bnkit.recalibrate_(model, data)
    mean, _ = truth(model[0](torch.cat(data)).detach())
    assert relative_error(plan["1"].new_mean, mean) < SINGLE
    assert model[1].running_mean.dtype == torch.bfloat16
    model(data[0])


def test_complex_values():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(2, dtype=torch.complex64))
    x = torch.randn(16, 2, dtype=torch.complex64) + 2j
    plan = bnkit.recalibrate_(model, [x[:9], x[9:]])
    assert relative_error(plan["0"].new_mean, x.to(torch.complex128).mean(0)) < SINGLE
    assert relative_error(model[0].running_var, x.to(torch.complex128).var(0)) < SINGLE


def test_a_lazy_layer_and_one_without_memory_are_refused():
    with pytest.raises(InputError, match=r"'0' \(LazyBatchNorm1d\): .* Run one batch"):
        bnkit.recalibrate(nn.Sequential(nn.LazyBatchNorm1d()), [torch.randn(4, 2)])
    with pytest.raises(InputError, match="expected numbers, got a tensor of the meta device"):
        bnkit.recalibrate(nn.Sequential(nn.BatchNorm1d(2, device="meta")), [torch.randn(4, 2)])


def test_a_model_without_batch_norm_says_so():
    plan = bnkit.recalibrate_(nn.Linear(2, 2), [torch.randn(4, 2)])
    assert len(plan) == 0
    assert str(plan) == "The model has no batch norm: there is nothing to recalibrate."


def test_the_model_may_be_copied_and_pickled_afterwards():
    model = network(bnkit.nn.BatchNorm2d)
    bnkit.recalibrate_(model, batches(8, 8))
    twin = copy.deepcopy(model)
    assert torch.equal(twin[5].running_var, model[5].running_var)
    assert "forward" not in twin[5].__dict__

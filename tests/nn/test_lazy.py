"""Lazy twins: what they carry over, load and refuse."""

import pickle

import pytest
import torch

import bnkit
from bnkit.core import ConversionError, InputError, RenormLimits, SpecError
from bnkit.nn.layers.recipe import Ghost

nn = bnkit.nn
OPTIONS = {
    "LazyBatchNormAct2d": {"act": torch.nn.LeakyReLU(0.2), "inplace": True},
    "LazyBatchRenorm2d": {"limits": {"rmax": 2}, "rule": "debiased", "renorm_momentum": 0.3},
    "LazyDifferentiableBatchNorm2d": {"unroll": True},
    "LazyGhostBatchNorm2d": {"virtual_batch_size": 2, "groups": "strided", "running": "total"},
    "LazyMaskedBatchNorm2d": {},
    "LazyBatchNorm2d": {},
}
COMMON = {"eps": 1e-3, "momentum": 0.2, "bias": False, "on_nonfinite": "raise"}


def x(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("name", OPTIONS)
def test_every_argument_is_carried_over(name):
    layer = getattr(nn, name)(**OPTIONS[name], **COMMON)
    eager = getattr(nn, name.removeprefix("Lazy"))(3, **OPTIONS[name], **COMMON)
    assert torch.equal(layer(x(4, 3, 5, 5)), eager(x(4, 3, 5, 5)))
    assert type(layer) is type(eager)
    assert repr(layer) == repr(eager)
    assert set(layer.__dict__) == set(eager.__dict__)
    assert list(layer.state_dict()) == list(eager.state_dict())
    for key, value in layer.state_dict().items():
        assert torch.equal(value, eager.state_dict()[key])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("options", [{}, {"affine": False}])
def test_a_state_dict_is_loaded_before_the_first_input(name, options):
    options = OPTIONS[name] | options
    source = getattr(nn, name.removeprefix("Lazy"))(3, **options)
    source(x(4, 3, 5, 5))
    layer = getattr(nn, name)(**options)
    layer.load_state_dict(source.state_dict())
    assert torch.equal(layer.eval()(x(2, 3, 5, 5)), source.eval()(x(2, 3, 5, 5)))
    assert layer.num_features == 3
    layer = getattr(nn, name)(**options)
    layer.load_state_dict(source.state_dict())
    with pytest.raises(InputError, match="should contain 4 elements"):
        layer(x(2, 4, 5, 5))


@pytest.mark.parametrize("name", OPTIONS)
def test_pickles_and_dtypes_before_the_first_input(name):
    layer = getattr(nn, name)(**OPTIONS[name])
    narrow = pickle.loads(pickle.dumps(layer)).to(torch.bfloat16)
    assert type(narrow) is type(layer)
    assert narrow(x(4, 3, 5, 5).bfloat16()).dtype == torch.bfloat16
    buffers = [b.dtype for b in narrow.buffers() if b.is_floating_point()]
    assert set(buffers) == {torch.float32}


def test_without_parameters_and_statistics():
    layer = nn.LazyMaskedBatchNorm1d(affine=False, track_running_stats=False)
    mask = torch.ones(4, 5).tril() > 0
    y = layer(x(4, 3, 5), mask=mask)
    assert (y[~mask.unsqueeze(1).expand_as(y)] == 0).all()
    assert layer.num_features == 3


def test_packed_sequences():
    packed = torch.nn.utils.rnn.pack_sequence([x(3, 4), x(2, 4)])
    layer = nn.LazyMaskedBatchNorm1d()
    assert layer(packed).data.shape == (5, 4)
    assert layer.num_features == 4


@pytest.mark.parametrize("name", OPTIONS)
def test_a_bad_first_input_leaves_the_layer_lazy(name):
    model = torch.nn.Sequential(getattr(nn, name)(**OPTIONS[name]))
    for bad, match in ((x(4, 3), "expected 4D input"), ([1.0], "torch.Tensor, got list")):
        with pytest.raises(InputError, match=match) as error:
            model(bad)
        assert str(error.value).startswith(f"'0' ({name}): ")
    assert model[0].has_uninitialized_params()
    assert model(x(4, 3, 5, 5)).shape == (4, 3, 5, 5)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: nn.LazyGhostBatchNorm1d(), TypeError, "virtual_batch_size"),
        (lambda: nn.LazyGhostBatchNorm1d(virtual_batch_size=0), SpecError, "GhostBatchNorm1d"),
        (lambda: nn.LazyBatchRenorm3d(limits={"rmin": 2, "rmax": 1}), SpecError, "rmin <= rmax"),
        (lambda: nn.LazyBatchRenorm1d(track_running_stats=False), SpecError, "track_running"),
        (lambda: nn.LazyBatchNormAct1d(act="gelu"), SpecError, "'gelu'"),
        (lambda: nn.LazyBatchNorm1d(on_nonfinite="x"), InputError, "BatchNorm1d: on_nonfinite"),
    ],
)
def test_bad_arguments_are_refused_at_once(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_torchs_lazy_layers_become_ours():
    model = torch.nn.Sequential(torch.nn.LazyBatchNorm2d(eps=0.1))
    assert nn.replace_(model, on_nonfinite="raise").replaced == ("0",)
    model(x(4, 3, 5, 5))
    assert type(model[0]) is nn.BatchNorm2d
    assert (model[0].eps, model[0].on_nonfinite) == (0.1, "raise")
    nn.restore_(model)
    assert set(model[0].__dict__) == set(torch.nn.BatchNorm2d(3).__dict__)


def test_the_verbs_ask_for_a_first_batch():
    model = torch.nn.Sequential(nn.LazyBatchRenorm2d(limits=RenormLimits()))
    with pytest.raises(ConversionError, match="Run one batch through the model first"):
        nn.convert_sync_batchnorm(model)
    assert nn.ghost_(model, 2).kept == {"0": "LazyBatchRenorm2d is not a plain batch norm"}
    model(x(4, 3, 5, 5))
    assert nn.plain_(model).replaced == ("0",)
    assert nn.ghost_(model, 2).replaced == ("0",)
    assert model[0].ghost == Ghost(virtual_batch_size=2)

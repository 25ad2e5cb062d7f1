"""Switching ghost batch norm and batch renormalization on and off in a model that exists."""

import copy

import pytest
import torch

import bnkit
from bnkit.core import InputError, RenormLimits, RenormSchedule, SpecError

nn = bnkit.nn


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 36, 5),
        torch.nn.BatchNorm1d(5),
    )


def switch(m, kind, **options):
    return nn.ghost_(m, 4, **options) if kind == "ghost" else nn.renorm_(m, **options)


@pytest.mark.parametrize("kind", ["ghost", "renorm"])
def test_there_and_back(kind):
    m = model()
    x = torch.randn(8, 3, 8, 8)
    m(x)
    layers, parameters, before = list(m), list(m.parameters()), copy.deepcopy(m.state_dict())
    y = copy.deepcopy(m).eval()(x)
    done = switch(m, kind)
    assert done.replaced == ("1", "2", "5")
    assert done.kept == {}
    prefix = {"ghost": "GhostBatchNorm", "renorm": "BatchRenorm"}[kind]
    assert [type(m[i]).__name__ for i in (1, 2, 5)] == [f"{prefix}{d}d" for d in (2, 2, 1)]
    torch.testing.assert_close(m.eval()(x), y)
    m.train()(x)
    m.load_state_dict(before)  # a plain checkpoint fits
    assert nn.plain_(m).replaced == ("1", "2", "5")
    nn.restore_(m)
    assert all(a is b for a, b in zip(m, layers, strict=True))
    assert all(a is b for a, b in zip(m.parameters(), parameters, strict=True))
    assert list(m.state_dict()) == list(before)
    torch.testing.assert_close(m.eval()(x), y)
    assert type(m[1]) is torch.nn.BatchNorm2d


def test_switched_layers_compute_what_new_ones_do():
    x = torch.randn(8, 4, 5, 5)
    for kind, fresh in (
        ("ghost", nn.GhostBatchNorm2d(4, virtual_batch_size=4)),
        ("renorm", nn.BatchRenorm2d(4, momentum=0.1)),
    ):
        layer = torch.nn.BatchNorm2d(4)
        switch(layer, kind)
        assert repr(layer) == repr(fresh)
        for _ in range(2):
            torch.testing.assert_close(layer(x), fresh(x), rtol=1e-4, atol=1e-4)


def test_a_trained_model_goes_on_where_it_is():
    layer = torch.nn.BatchNorm1d(3)
    for _ in range(5):
        layer(torch.randn(16, 3) * 3 + 2)
    x = torch.randn(4, 3)
    expected = copy.deepcopy(layer).eval()(x)
    nn.renorm_(layer, limits=RenormLimits())
    torch.testing.assert_close(layer.train()(x), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_switched_is_kept_with_a_reason():
    class Odd(torch.nn.BatchNorm2d):
        def forward(self, x):
            return -super().forward(x)

    m = torch.nn.Sequential(
        Odd(3),
        nn.BatchNormAct2d(3),
        torch.nn.BatchNorm2d(3, track_running_stats=False),
        nn.GhostBatchNorm2d(3, virtual_batch_size=2),
    )
    done = nn.renorm_(m)
    assert done.replaced == ()
    assert "forward pass of its own" in done.kept["0"]
    assert done.kept["1"] == "BatchNormAct2d is not a plain batch norm"
    assert done.kept["2"] == "it keeps no running statistics"
    assert done.kept["3"] == "GhostBatchNorm2d is not a plain batch norm"
    assert nn.ghost_(m, 2).replaced == ("2",)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: nn.ghost_(m, 0), "ghost_: expected virtual_batch_size"),
        (lambda m: nn.ghost_(m, 2, groups="x"), "ghost_: expected groups"),
        (lambda m: nn.renorm_(m, rule="x"), "renorm_: expected rule"),
        (lambda m: nn.renorm_(m, limits=3), "renorm_: expected the limits"),
    ],
)
def test_bad_options_change_nothing(call, match):
    m = model()
    before = repr(m)
    with pytest.raises(SpecError, match=match):
        call(m)
    assert repr(m) == before


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.GhostBatchNorm1d(3), "virtual_batch_size"),
        (lambda: nn.GhostBatchNorm1d(3, virtual_batch_size=2, size=1), "size"),
    ],
)
def test_a_missing_or_unknown_argument(make, match):
    with pytest.raises(TypeError, match=match):
        make()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.GhostBatchNorm1d(3, virtual_batch_size=-1), "GhostBatchNorm1d: expected virt"),
        (lambda: nn.GhostBatchNorm2d(3, virtual_batch_size=2, remainder="x"), "GhostBatchNorm2d"),
        (lambda: nn.BatchRenorm2d(3, limits={"rmax": 0.5, "rmin": 1}), "rmin <= rmax"),
        (lambda: nn.BatchRenorm2d(3, limits={"max": 2}), "got 'max'"),
        (lambda: nn.BatchRenorm2d(3, limits=RenormSchedule), "BatchRenorm2d: expected the limits"),
        (lambda: nn.BatchRenorm3d(3, rule="tf"), "BatchRenorm3d: expected rule"),
        (lambda: nn.BatchRenorm1d(3, track_running_stats=False), "track_running_stats=True"),
    ],
)
def test_bad_constructors(make, match):
    with pytest.raises(SpecError, match=match):
        make()


@pytest.mark.parametrize("kind", ["ghost", "renorm"])
def test_bad_input_names_the_layer(kind):
    m = torch.nn.Sequential(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    switch(m, kind)
    bad = {
        r"expected 4D input": torch.zeros(4, 3),
        "should contain 5 elements": torch.zeros(4, 5, 2, 2),
        "more than 1 value per channel": torch.zeros(1, 3, 1, 1),
        "floating point": torch.zeros(4, 3, 2, 2, dtype=torch.int64),
        "dtype": torch.zeros(4, 3, 2, 2, dtype=torch.float64),
        "torch.Tensor, got list": [1.0],
    }
    if kind == "ghost":
        bad["virtual_batch_size=4 divides, got 6"] = torch.zeros(6, 3, 2, 2)
    before = copy.deepcopy(m.state_dict())
    for match, x in bad.items():
        with pytest.raises(InputError, match=match) as error:
            m(x)
        assert str(error.value).startswith("'0.0' (")
    for key, value in m.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_schedule_of_ones_own():
    class Halving:
        def at(self, batches):
            return RenormLimits(rmax=1 + 1 / (1 + batches), dmax=0)

    layer = nn.BatchRenorm1d(3, limits=Halving(), momentum=0.0)
    x = torch.randn(16, 3) * 100
    sizes = [layer(x).std().item() for _ in range(3)]
    assert sizes == pytest.approx([sizes[0], sizes[0] * 1.5 / 2, sizes[0] * (4 / 3) / 2], rel=1e-4)

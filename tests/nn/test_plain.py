"""The way from the family back to plain batch norm."""

import pytest
import torch

import bnkit
from bnkit.core import ConversionError, RenormLimits
from tests.tolerances import FLOAT64

BatchNorm = bnkit.nn.BatchNorm


def close(a, b, tolerance=FLOAT64):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def values(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 2 + 3


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
def test_the_plain_twin(ndim, center, scale):
    layer = BatchNorm(3, center=center, scale=scale, dtype=torch.float64)
    x = values(4, 3, *(2,) * (ndim - 2))
    layer(x)
    twin = layer.plain(ndim)
    assert isinstance(twin, getattr(torch.nn, f"BatchNorm{max(ndim - 2, 1)}d"))
    for _ in range(2):
        close(twin.train()(x), layer.train()(x), 0)
        close(twin.eval()(x), layer.eval()(x), 0)
    assert twin.running_mean is layer.running_mean
    for name in ("weight", "bias"):
        ours = getattr(layer, name)
        assert ours is None or getattr(twin, name) is ours
    assert not any(p.device.type == "meta" for p in twin.parameters())


def test_the_plain_twin_is_refused():
    with pytest.raises(ConversionError, match=r"axis=\(-1,\) and ndim=4"):
        BatchNorm(3, -1).plain(4)
    with pytest.raises(ConversionError):
        BatchNorm((3, 2), (1, 2)).plain(4)
    with pytest.raises(ConversionError):
        BatchNorm(3).plain(6)
    assert type(BatchNorm(3, -1).plain(2)) is bnkit.nn.BatchNorm1d


def test_plain_in_place():
    model = torch.nn.Sequential(
        bnkit.nn.GhostBatchNorm2d(3, virtual_batch_size=2),
        bnkit.nn.BatchRenorm2d(3, limits=RenormLimits()),
        BatchNorm(3),
        bnkit.nn.BatchNorm2d(3),
    )
    x = torch.randn(4, 3, 5, 5)
    model(x)
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    layers, parameters = list(model), list(model.parameters())
    y = model.eval()(x)
    done = bnkit.nn.plain_(model)
    assert done.replaced == ("0", "1")
    assert list(done.kept) == ["2"]
    assert "layer.plain(ndim)" in done.kept["2"]
    assert [type(m).__name__ for m in model] == [
        "BatchNorm2d",
        "BatchNorm2d",
        "BatchNorm",
        "BatchNorm2d",
    ]
    assert all(a is b for a, b in zip(model, layers, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    close(model(x), y, 0)
    assert len(calls) == 2
    assert list(model[1].state_dict()) == list(torch.nn.BatchNorm2d(3).state_dict())
    torch.nn.BatchNorm2d(3).load_state_dict(model[0].state_dict())
    model.train()(x)
    bnkit.nn.restore_(model[1])
    assert type(model[1]) is torch.nn.BatchNorm2d


def test_what_is_not_plain_is_named_with_the_reason():
    model = torch.nn.ModuleDict(
        {
            "masked": bnkit.nn.MaskedBatchNorm1d(3),
            "fused": bnkit.nn.BatchNormAct2d(3),
            "domains": bnkit.nn.DomainBatchNorm(
                {"a": bnkit.nn.GhostBatchNorm1d(3, virtual_batch_size=2)}
            ),
            "sync": bnkit.nn.SyncBatchNorm(3),
            "converted": bnkit.nn.convert_sync_batchnorm(bnkit.nn.BatchNorm2d(3)),
            "lazy": bnkit.nn.LazyBatchRenorm1d(),
            "plain": bnkit.nn.BatchNorm2d(3),
            "torch": torch.nn.BatchNorm2d(3),
        }
    )
    before = {name: type(m) for name, m in model.items()}
    done = bnkit.nn.plain_(model)
    assert done.replaced == ("domains.domain_a",)
    assert type(model["domains"].of("a")) is bnkit.nn.BatchNorm1d
    assert {name: type(m) for name, m in model.items()} == before
    expected = {
        "masked": "MaskedBatchNorm1d: without a mask it is plain",
        "fused": "BatchNormAct2d: its activation and the residual would be lost",
        "domains": "DomainBatchNorm: keep_domain_",
        "sync": "SyncBatchNorm: its input may have any rank",
        "converted": "BatchNorm2d: it is synchronized=True; call revert_sync_batchnorm",
        "lazy": "LazyBatchRenorm1d: it has not seen its first input",
    }
    assert list(done.kept) == list(expected)
    for name, start in expected.items():
        assert done.kept[name].startswith(start)


@pytest.mark.parametrize("name", ["MaskedBatchNorm1d", "SyncBatchNorm"])
def test_the_state_dict_of_what_is_kept_is_plain(name):
    layer = getattr(bnkit.nn, name)(3)
    x = torch.randn(4, 3, 5)
    layer(x)
    plain = torch.nn.BatchNorm1d(3)
    plain.load_state_dict(layer.state_dict())
    close(layer.eval()(x), plain.eval()(x), 1e-6)

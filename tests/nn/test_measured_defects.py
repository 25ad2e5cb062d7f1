"""Each defect of torch.nn that was measured: shown there where it still is, gone here."""

import warnings

import pytest
import torch

import bnkit
from bnkit.core import EmptyBatchWarning, NonFiniteError, NonFiniteWarning
from tests.tolerances import VARIANCE_LARGE_MEAN


def relative(got, expected):
    return ((got.double() - expected) / expected).abs().max().item()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [0.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("shape", [(32, 16, 56, 56), (16, 64, 7, 7), (8, 3, 112, 112)])
def test_variance_in_float32(shape, mean, memory_format):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean).contiguous(
        memory_format=memory_format
    )
    layer = bnkit.nn.BatchNorm2d(shape[1], momentum=1.0)
    y = layer(x)
    wide = x.double()
    var = wide.var((0, 2, 3))
    assert relative(layer.running_var, var) < VARIANCE_LARGE_MEAN
    assert (layer.running_var >= 0).all()
    exact = torch.nn.functional.batch_norm(wide, None, None, training=True)
    # half a unit in the last place of the mean, twice, divided by a standard deviation of 1
    assert (y - exact).abs().max() < 2 * mean * 2**-24 + 5e-6


def test_torch_channels_last_still_loses_digits():
    """If this fails, torch has mended its kernel and the documentation must say so."""
    x = torch.randn(64, 16, 112, 112, generator=torch.Generator().manual_seed(0)) + 1000
    x = x.contiguous(memory_format=torch.channels_last)
    theirs, ours = (nn.BatchNorm2d(16, momentum=1.0) for nn in (torch.nn, bnkit.nn))
    theirs(x), ours(x)
    var = x.double().var((0, 2, 3))
    assert relative(theirs.running_var, var) > 0.01
    assert relative(ours.running_var, var) < VARIANCE_LARGE_MEAN


def test_gradients_are_as_exact_in_channels_last():
    x = torch.randn(32, 16, 56, 56, generator=torch.Generator().manual_seed(0)) + 1000
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    layer = bnkit.nn.BatchNorm2d(16)
    oracle = torch.nn.BatchNorm2d(16, dtype=torch.float64)
    oracle(x.double()).backward(g.double())
    for memory_format in (torch.contiguous_format, torch.channels_last):
        layer.zero_grad()
        layer(x.contiguous(memory_format=memory_format)).backward(g)
        # sum of 1e5 products of order 1, each with xhat off by the rounding of a mean of 1000
        assert (layer.weight.grad - oracle.weight.grad).abs().max() < 0.05


def test_cumulative_average_is_the_mean_of_batches():
    layer = bnkit.nn.BatchNorm1d(3, momentum=None, dtype=torch.float64)
    xs = [torch.randn(4, 3, dtype=torch.float64) for _ in range(5)]
    for x in xs:
        layer(x)
    torch.testing.assert_close(layer.running_mean, torch.stack([x.mean(0) for x in xs]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([x.var(0) for x in xs]).mean(0))


@pytest.mark.parametrize("momentum", [None, 1.0])
def test_a_weight_of_one_copies_a_small_variance(momentum):
    """1 + 1 * (var - 1) would keep no digit of it."""
    x = 1e-4 * torch.randn(64, 4)
    layer = bnkit.nn.BatchNorm1d(4, momentum=momentum)
    layer(x)
    assert relative(layer.running_var, x.double().var(0)) < 1e-5


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
def test_nonfinite_batches_leave_the_statistics_alone(value):
    layer = bnkit.nn.BatchNorm1d(3)
    layer(torch.randn(8, 3))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    bad = torch.randn(8, 3)
    bad[2, 1] = value
    model = torch.nn.Sequential(torch.nn.Identity(), layer)
    with pytest.warns(NonFiniteWarning, match=r"'1' \(BatchNorm1d\)"):
        y = model(bad)
    assert not y.isfinite().all()  # the output is not hidden: the loss must show it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(bad)  # counted, not warned about again
    for key, value_before in before.items():
        torch.testing.assert_close(layer.state_dict()[key], value_before, rtol=0, atol=0)
    assert int(layer.nonfinite_batches) == 2
    assert "nonfinite_batches" not in layer.state_dict()


def test_propagate_is_what_torch_does():
    ours, theirs = bnkit.nn.BatchNorm1d(3, on_nonfinite="propagate"), torch.nn.BatchNorm1d(3)
    x = torch.randn(8, 3)
    x[0, 1] = float("inf")
    for layer in (ours, theirs):
        layer(x)
    torch.testing.assert_close(ours.running_mean[[0, 2]], theirs.running_mean[[0, 2]])
    assert not ours.running_mean[1].isfinite()  # infinity in torch, NaN where it was centred
    assert int(ours.num_batches_tracked) == 1
    assert ours.running_var[1].isnan()
    assert ours.running_var[[0, 2]].isfinite().all()


def test_raise_stops_before_the_statistics_change():
    layer = bnkit.nn.BatchNorm1d(3, on_nonfinite="raise")
    with pytest.raises(NonFiniteError, match=r"BatchNorm1d.*on_nonfinite='skip'"):
        layer(torch.full((4, 3), float("nan")))
    assert layer.running_mean.eq(0).all()
    assert int(layer.num_batches_tracked) == 0


def test_a_first_bad_batch_does_not_shift_the_cumulative_average():
    layer = bnkit.nn.BatchNorm1d(2, momentum=None)
    with pytest.warns(NonFiniteWarning):
        layer(torch.full((4, 2), float("nan")))
    x = torch.randn(4, 2)
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0))


@pytest.mark.parametrize("convert", ["bfloat16", "half"])
def test_statistics_of_a_narrow_module_move(convert):
    """A bfloat16 running mean of torch.nn freezes at 2.0 where the data has mean 5."""
    dtype = {"bfloat16": torch.bfloat16, "half": torch.float16}[convert]
    ours = getattr(bnkit.nn.BatchNorm1d(2, momentum=0.001), convert)()
    theirs = getattr(torch.nn.BatchNorm1d(2, momentum=0.001), convert)()
    assert ours.running_mean.dtype == ours.running_var.dtype == torch.float32
    assert ours.weight.dtype == dtype
    generator = torch.Generator().manual_seed(0)
    for _ in range(3000):
        x = (torch.randn(16, 2, generator=generator) + 5).to(dtype)
        ours(x), theirs(x)
    expected = 5 * (1 - 0.999**3000)
    assert (ours.running_mean - expected).abs().max() < 0.05
    assert (theirs.running_mean.float() - expected).abs().max() > 0.5


def test_widening_keeps_every_digit():
    layer = bnkit.nn.BatchNorm1d(2)
    layer(torch.randn(8, 2))
    mean = layer.running_mean.clone()
    layer.half().bfloat16()
    torch.testing.assert_close(layer.running_mean, mean, rtol=0, atol=0)
    layer.double()
    assert layer.running_mean.dtype == torch.float64


def test_loading_narrow_statistics_by_assignment_widens_them():
    state = torch.nn.BatchNorm1d(2).half().state_dict()
    layer = bnkit.nn.BatchNorm1d(2)
    layer.load_state_dict(state, assign=True)
    assert layer.running_var.dtype == torch.float32
    assert layer.weight.dtype == torch.float16


def test_empty_batch_is_not_counted():
    layer = bnkit.nn.BatchNorm2d(3)
    x = torch.randn(0, 3, 4, 4, requires_grad=True)
    with pytest.warns(EmptyBatchWarning, match="the batch is empty"):
        y = layer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert layer.weight.grad.eq(0).all()
    assert int(layer.num_batches_tracked) == 0
    assert layer.running_var.eq(1).all()


def test_complex_input():
    torch.manual_seed(0)
    layer = bnkit.nn.BatchNorm1d(3, dtype=torch.complex64)
    x = torch.randn(64, 3, dtype=torch.complex64) * 3 + (1 + 2j)
    y = layer(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.complex64), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.abs().square().mean(0), torch.ones(3), rtol=1e-4, atol=0)
    assert layer.running_var.dtype == torch.float32
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean(0))
    variance = (x - x.mean(0)).abs().square().sum(0) / 63
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * variance)
    y.abs().sum().backward()
    assert layer.weight.grad.is_complex()
    assert layer.eval()(x).shape == x.shape

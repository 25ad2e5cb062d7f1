"""Interrupted, saved, continued: the result is that of a run without a pause."""

import numpy as np
import pytest
import torch

import bnkit
from bnkit.core import InputError, OutputError
from tests.recalibration.data import batches, network


class Stopping:
    """Raises at one batch of one pass, the first time."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, model, batch):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return model(batch)


def loader():
    dataset = torch.cat(batches(24))
    return torch.utils.data.DataLoader(dataset, 4, shuffle=True)


@pytest.mark.parametrize("at", [2, 6, 9])
@pytest.mark.parametrize("estimator", ["pooled", "cumulative", "ema"])
def test_a_run_goes_on_where_it_was(tmp_path, estimator, at):
    path = tmp_path / "state"
    options = {"estimator": estimator, "consistent": True, "save": path}
    data, model = loader(), network()
    torch.manual_seed(5)
    expected = bnkit.recalibrate(model, data, **options)
    assert not path.exists(), "nothing is left of a run that is complete"
    forward = Stopping(at)
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        bnkit.recalibrate(model, data, **options, forward=forward)
    assert path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    torch.manual_seed(77)  # a new process would be anywhere
    found = bnkit.recalibrate(model, data, **options, forward=forward)
    assert forward.calls - 1 == 6 * expected.passes, "no batch was run twice"
    assert not path.exists()
    assert (found.passes, found.batches, found.samples) == (expected.passes, 6, 24)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.new_mean, b.new_mean)
        np.testing.assert_array_equal(a.new_var, b.new_var)
        np.testing.assert_array_equal(a.count, b.count)
        if estimator != "ema":
            np.testing.assert_array_equal(a.var_margin, b.var_margin)


def interrupted(path, model, **options):
    with pytest.raises(KeyboardInterrupt):
        bnkit.recalibrate(model, batches(8, 8, 8), save=path, forward=Stopping(2), **options)
    return path


def test_sums_of_something_else_are_refused(tmp_path):
    model = network()
    path = interrupted(tmp_path / "state", model)
    with pytest.raises(InputError, match="got another model or other options"):
        bnkit.recalibrate(model, batches(8), save=path, consistent=True)
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(InputError, match="got another model or other options"):
        bnkit.recalibrate(model, batches(8), save=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"a file that cannot be read .*Remove it"):
        bnkit.recalibrate(model, batches(8), save=path)


def test_an_error_before_the_first_batch_leaves_no_file(tmp_path):
    with pytest.raises(InputError):
        bnkit.recalibrate(network(), [torch.zeros(1, 1)], save=tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="expected to save the statistics so far"):
        interrupted(tmp_path / "no" / "state", network())


def test_complex_sums_survive(tmp_path):
    model = torch.nn.Sequential(bnkit.nn.BatchNorm1d(2, dtype=torch.complex64))
    data = [torch.randn(8, 2, dtype=torch.complex64) for _ in range(3)]
    expected = bnkit.recalibrate(model, data)["0"]
    forward = Stopping(3)
    with pytest.raises(KeyboardInterrupt):
        bnkit.recalibrate(model, data, save=tmp_path / "s", forward=forward)
    found = bnkit.recalibrate(model, data, save=tmp_path / "s", forward=forward)["0"]
    np.testing.assert_array_equal(found.new_mean, expected.new_mean)

"""Every form of data, and what is said about data that cannot be used."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import InputError, SpecError
from tests.recalibration.data import batches, network

X = torch.cat(batches(20))
Pair = namedtuple("Pair", "input target")


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], i


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(X.split(8))


FORMS = {
    "list": lambda: list(X.split(8)),
    "generator": lambda: (x for x in X.split(8)),
    "tuples": lambda: [(x, torch.zeros(len(x))) for x in X.split(8)],
    "lists": lambda: [[x, torch.zeros(len(x))] for x in X.split(8)],
    "named tuples": lambda: [Pair(x, torch.zeros(len(x))) for x in X.split(8)],
    "dicts": lambda: [{"input": x, "labels": 1} for x in X.split(8)],
    "arrays": lambda: [x.numpy() for x in X.split(8)],
    "float64 arrays": lambda: X.double().numpy(),
    "tensor": lambda: X,
    "tuple of tensors": lambda: (X, torch.zeros(20)),
    "dict of tensors": lambda: {"input": X, "labels": torch.zeros(20)},
    "loader": lambda: torch.utils.data.DataLoader(X, 8),
    "dataset": Images,
    "stream": lambda: torch.utils.data.DataLoader(Stream(), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    expected = bnkit.recalibrate(network(), list(X.split(8)))
    found = bnkit.recalibrate(network(), FORMS[form](), batch_size=8)
    assert (found.samples, found.batches) == (20, 3)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.new_var, b.new_var)
        np.testing.assert_array_equal(a.new_mean, b.new_mean)


def test_models_that_are_called_in_another_way():
    """pytorch#49082: more than one input."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, left, right):
            return self.norm(left + right)

    x = torch.randn(16, 2)
    by_name = bnkit.recalibrate(Two(), [{"left": x, "right": x, "y": 0}])["norm"]
    by_call = bnkit.recalibrate(Two(), [(x, x)], forward=lambda m, b: m(*b))["norm"]
    np.testing.assert_array_equal(by_name.new_var, by_call.new_var)
    np.testing.assert_allclose(by_name.new_var, (2 * x).double().var(0), rtol=1e-6)
    with pytest.raises(
        InputError, match=r"arguments of Two.forward \(left, right\), got a dict of 'a'"
    ):
        bnkit.recalibrate(Two(), [{"a": x}])


def test_the_most_batches():
    plan = bnkit.recalibrate(network(), X, batch_size=4, batches=3)
    assert (plan.batches, plan.samples) == (3, 12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "at least one batch, got none"),
        (torch.empty(0, 3, 10, 10), "at least one batch, got none"),
        (
            [X[:1]],
            r"'9' \(BatchNorm1d\): expected more than 1 value per channel, got 1 in the first",
        ),
        (7, "expected batches .* got int"),
        ("digits", "expected batches .* got str"),
        (
            {"a": X, "b": X[:3]},
            r"same number of samples, got shapes \(20, 3, 10, 10\), \(3, 3, 10, 10\)",
        ),
        ([()], r"expected a batch \(input, ...\), got an empty tuple"),
        ([X[:, :2]], r"failed on batch 0 \(Tensor of float32 \(20, 2, 10, 10\)\): RuntimeError"),
        ([X.double()], "failed on batch 0 .*RuntimeError.*forward=lambda"),
        (["text"], "failed on batch 0 .str of no tensor"),
        ([X[:0], X[:0]], "at least one batch, got 2 without samples"),
        (X.to("meta"), "can be moved to cpu, where the model is, got a tensor on meta"),
        (X.flatten(1).to_sparse(), "expected dense tensors"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(InputError, match=message):
        bnkit.recalibrate(network(), data)


def test_an_error_of_the_loader_is_said_to_be_one():
    def broken():
        yield X
        raise OSError("disk gone")

    with pytest.raises(InputError, match=r"expected batch 1, got .*OSError: disk gone"):
        bnkit.recalibrate(network(), broken())


def test_batches_of_a_form_that_nothing_can_count():
    model = network()
    found = bnkit.recalibrate(model, [object()] * 2, forward=lambda net, _: net(X))
    assert (found.batches, found.samples) == (2, 0)
    assert found.layers[0].new_mean is not None


def test_a_model_without_numbers():
    with torch.device("meta"):
        model = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(InputError, match=r"'0.weight': expected numbers, got .* meta device"):
        bnkit.recalibrate(model, torch.randn(8, 2))


def test_wrong_channels_are_refused_by_the_name_of_the_layer():
    model = nn.Sequential(nn.BatchNorm2d(4))
    for consistent in (False, True):
        with pytest.raises(
            InputError, match=r"'0' \(BatchNorm2d\): expected 4 channels .* \(20, 3, 10, 10\)"
        ):
            bnkit.recalibrate(model, X, consistent=consistent)


def test_one_value_in_all_the_data():
    frozen = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(InputError, match=r"'0' \(BatchNorm1d\): expected more than 1 value"):
        bnkit.recalibrate(frozen, [torch.randn(1, 2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "mean"}, "estimator must be one of 'pooled'"),
        ({"on_nonfinite": "propagate"}, "on_nonfinite must be one of 'raise', 'skip'"),
        ({"batches": 0}, "batches must be an integer of at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be an integer"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(SpecError, match=message):
        bnkit.recalibrate(network(), X, **options)


def test_not_a_model():
    with pytest.raises(InputError, match=r"expected a torch.nn.Module, got dict"):
        bnkit.recalibrate({}, X)


def test_weights_of_another_shape():
    with pytest.raises(
        InputError, match=r"expected weights of shape \(20,\) or \(20, 8, 8\) .* got \(3,\)"
    ):
        bnkit.recalibrate(network(), [X], weights=lambda _: torch.ones(3))


def test_progress_is_told():
    told = []
    bnkit.recalibrate(network(), X, batch_size=8, progress=lambda *args: told.append(args))
    assert told[0] == ("recalibrate", 0, 3, "")
    assert [t[1] for t in told] == [0, 1, 2, 3, 3]
    told.clear()
    bnkit.recalibrate(network(), iter(X.split(8)), progress=lambda *args: told.append(args))
    assert [t[2] for t in told] == [None, None, None, None, 3]
    told.clear()
    bnkit.recalibrate(network(), X, consistent=True, progress=lambda *args: told.append(args))
    assert told[0][3] == "pass 1 of at most 4"


def test_a_tuple_of_batches_is_not_taken_for_one_data_set():
    model, x = torch.nn.BatchNorm1d(2), torch.arange(24.0).reshape(12, 2)
    with pytest.raises(InputError, match="Pass a list of them"):
        bnkit.recalibrate(model, x.split(4))
    plan = bnkit.recalibrate(model, list(x.split(4)))
    assert plan[""].new_mean.tolist() == [11.0, 12.0]
    assert bnkit.recalibrate(model, (x, x))[""].count == 12

"""Bad input: one clear message that says where, what was expected, what was got, what to do."""

import pytest
import torch

import bnkit
from bnkit.core import InputError


def model(**switches):
    return torch.nn.Sequential(torch.nn.Identity(), bnkit.nn.BatchNorm2d(3, **switches))


X = torch.zeros(2, 3, 4, 4)
CASES = {
    "rank": (model(), X[0], r"expected 4D input .*got 3D input of shape \(3, 4, 4\)"),
    "rank 2": (model(), X[:, :, 0, 0], r"BatchNorm1d"),
    "channels": (model(), torch.zeros(2, 5, 4, 4), r"should contain 5 elements.*num_features=5"),
    "channels in eval": (model().eval(), torch.zeros(2, 5, 4, 4), "should contain 5 elements"),
    "eps 0": (model(eps=0.0), X, "eps must be positive during training, but got 0"),
    "eps negative": (model(eps=-1.0).eval(), X, "eps must be non-negative, but got -1"),
    "one value": (model(), X[:1, :, :1, :1], r"more than 1 value per channel .*drop_last=True"),
    "integers": (model(), X.long(), r"floating point input, got torch.int64.*\.float\(\)"),
    "dtype": (model(), X.double(), r"dtype torch.float64, the input's, got torch.float32"),
    "narrow layer": (model().bfloat16(), X, "weight of dtype torch.float32"),
    "device": (model(), X.to("meta"), "on the device of the input, meta, got cpu"),
}


@pytest.mark.parametrize("case", CASES)
def test_message_names_the_layer(case):
    network, x, message = CASES[case]
    with pytest.raises(InputError, match=message) as raised:
        network(x)
    assert str(raised.value).startswith("'1' (BatchNorm2d): ")


@pytest.mark.parametrize("case", CASES)
def test_the_kind_of_error_is_torchs(case):
    network, x, _ = CASES[case]
    theirs = torch.nn.BatchNorm2d(3, eps=network[1].eps, dtype=network[1].weight.dtype)
    theirs.train(network.training)
    with pytest.raises((ValueError, RuntimeError)) as raised:
        theirs(x)
    ours = pytest.raises(raised.type if raised.type is not NotImplementedError else RuntimeError)
    with ours:
        network(x)


@pytest.mark.parametrize("case", CASES)
def test_nothing_changed(case):
    network, x, _ = CASES[case]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(InputError):
        network(x)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_alone_the_class_is_named():
    with pytest.raises(InputError, match=r"^BatchNorm1d: expected 2D or 3D input"):
        bnkit.nn.BatchNorm1d(3)(X)


def test_deep_names():
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), bnkit.nn.BatchNorm2d(3))
    network = torch.nn.ModuleDict({"stem": torch.nn.Sequential(block)})
    network.forward = lambda x: network["stem"](x)
    outer = torch.nn.Sequential(network)
    with pytest.raises(InputError, match=r"^'0\.stem\.0\.1' \(BatchNorm2d\)"):
        outer(X[:1, :, :1, :1])


def test_functional_names_itself():
    with pytest.raises(
        InputError, match=r"^batch_norm: running_mean and running_var must be given"
    ):
        bnkit.nn.functional.batch_norm(X, None, None)


def test_unknown_policy():
    with pytest.raises(InputError, match=r"'skip', 'propagate', 'raise', got 'ignore'"):
        bnkit.nn.BatchNorm1d(3, on_nonfinite="ignore")

"""The twins of `tf.nn.moments` and `tf.nn.batch_normalization`."""

import pytest
import torch
import torch.nn.functional as F

import bnkit
from bnkit.core import InputError, SpecError, moments
from tests.tolerances import FLOAT64


def close(a, b, tolerance=FLOAT64):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def values(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 2 + 3


def test_twins_of_tf_nn_refuse_bad_input():
    x = torch.randn(4, 3)
    f = bnkit.functional
    with pytest.raises(InputError, match="axes within the 2 dimensions of x, got 2"):
        f.moments(x, 2)
    with pytest.raises(InputError, match="expected an array, got list"):
        f.moments([[1.0]], 0)
    with pytest.raises(InputError, match="floating point"):
        f.moments(x.long(), 0)
    with pytest.raises(InputError, match=r"expected mean to broadcast against x of shape \(4, 3\)"):
        f.batch_normalization(x, torch.zeros(4), torch.ones(3), eps=1e-3)
    with pytest.raises(InputError, match="expected weight to broadcast"):
        f.batch_normalization(x, x[0], x[0], x[0], torch.ones(2, 4, 3), eps=1e-3)
    with pytest.raises(SpecError, match="expected eps >= 0"):
        f.batch_normalization(x, x[0], x[0], eps=-1)


def test_twins_of_tf_nn(space):
    x = values(4, 6, 3)
    given = space(x.numpy())
    mean, var = bnkit.functional.moments(given, (0, -2), keepdims=True)
    close(torch.tensor(space.back(mean)), x.mean((0, 1), keepdim=True))
    close(torch.tensor(space.back(var)), x.var((0, 1), correction=0, keepdim=True))
    weight, bias = values(3), values(3)
    y = bnkit.functional.batch_normalization(
        given, mean, var, space(bias.numpy()), space(weight.numpy()), eps=1e-3
    )
    expected = F.batch_norm(x.transpose(1, 2), None, None, weight, bias, True, eps=1e-3)
    close(torch.tensor(space.back(y)), expected.transpose(1, 2), 1e-9)
    whole = moments(given)
    flat = bnkit.functional.moments(given, [0, 1, 2])
    assert float(flat[0]) == float(whole.mean)

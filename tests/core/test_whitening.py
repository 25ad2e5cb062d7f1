"""The inverse square root of a covariance, against its definition."""

import numpy as np
import pytest

from bnkit.core import SpecError, check_whitening, inverse_root, lyapunov, newton_inverse_root


def covariances(d, spread):
    rng = np.random.default_rng(d)
    rotation = np.linalg.qr(rng.normal(size=(3, d, d)))[0]
    values = np.geomspace(1, spread, d)
    return (rotation * values) @ rotation.swapaxes(1, 2)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_it_is_the_inverse_of_the_root(d):
    s = covariances(d, 100.0)
    w = inverse_root(np, s).matrix
    np.testing.assert_allclose(w, w.swapaxes(1, 2), atol=1e-12)
    np.testing.assert_allclose(w @ s @ w, np.broadcast_to(np.eye(d), s.shape), atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_newton_converges_to_it(d):
    s = covariances(d, 100.0)
    exact = inverse_root(np, s).matrix
    errors = [abs(newton_inverse_root(np, s, t) - exact).max() for t in (2, 5, 15)]
    assert errors[2] < 1e-8
    assert d == 1 or errors[0] > errors[1] > errors[2]


def test_newton_is_the_iteration_of_the_paper():
    s = covariances(3, 10.0)[0]
    p, n = np.eye(3), s / np.trace(s)
    for _ in range(4):
        p = (3 * p - np.linalg.matrix_power(p, 3) @ n) / 2
    np.testing.assert_allclose(newton_inverse_root(np, s, 4), p / np.sqrt(np.trace(s)), rtol=1e-12)


def test_lyapunov():
    s, c = covariances(4, 50.0), np.random.default_rng(1).normal(size=(3, 4, 4))
    found = inverse_root(np, s)
    root = s @ found.matrix
    x = lyapunov(np, c, found.vectors, found.roots)
    np.testing.assert_allclose(root @ x + x @ root, c, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((6, 4, "zca", 5), "groups must be a number that divides the 6 channels, got 4"),
        ((6, 0, "zca", 5), "got 0"),
        ((6, 2, "pca", 5), "method must be one of 'zca', 'newton', got 'pca'"),
        ((6, 2, "newton", 0), "iterations must be a positive integer, got 0"),
    ],
)
def test_what_is_refused(given, words):
    c, groups, method, iterations = given
    with pytest.raises(SpecError, match=f"layer: .*{words}"):
        check_whitening("layer", c, groups, method=method, iterations=iterations)

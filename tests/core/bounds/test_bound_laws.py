"""Laws of all bounds: monotone, ordered, never below what was observed, finite at the ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit.core.bounds import (
    Rates,
    bernstein_upper,
    betting_interval,
    binomial_p_value,
    catoni,
    catoni_mixture,
    catoni_rate,
    chernoff,
    chernoff_lower,
    clopper_pearson,
    clopper_pearson_lower,
    deviation_lower,
    deviation_upper,
    ema_effective_size,
    empirical_bernstein_interval,
    exponential_moment,
    fresh_gain,
    gaussian_divergence,
    hoeffding,
    kl_inverse,
    kl_inverse_lower,
    mixture_root,
    monte_carlo,
    one_draw,
    one_draw_binomial,
    one_draw_kl,
    pac_bayes_kl,
    prequential,
)
from bnkit.core.errors import BatchNormError, CertificateError

ANYTIME = Rates.anytime()
# each takes errors, examples, delta and nats, and bounds the risk from above
UPPER = {
    "clopper_pearson": lambda k, n, d, _: clopper_pearson(k, n, d),
    "chernoff": lambda k, n, d, _: chernoff(k / n, n, d),
    "hoeffding": lambda k, n, d, _: hoeffding(k / n, n, d),
    "catoni": lambda k, n, d, c: catoni(k / n, n, d, 0.8, divergence=c),
    "mixture": lambda k, n, d, c: catoni_mixture(k / n, n, d, ANYTIME, divergence=c),
    "pac_bayes_kl": lambda k, n, d, c: pac_bayes_kl(k / n, n, d, divergence=c),
    "monte_carlo": lambda k, n, d, _: monte_carlo(k / n, n, 3, d),
    "one_draw": lambda k, n, d, c: one_draw(k / n, n, d, ANYTIME, log_ratio=c),
    "one_draw_kl": lambda k, n, d, c: one_draw_kl(k / n, n, d, log_ratio=c),
    "one_draw_binomial": lambda k, n, d, c: one_draw_binomial(k, n, d, log_ratio=c),
    "planned": lambda k, n, d, c: one_draw_binomial(k, n, d, log_ratio=c, expected=(0.0, 3.0)),
    "prequential": lambda k, n, d, _: prequential(k, n, d),
}
counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
deltas = st.floats(1e-12, 0.5)
nats = st.floats(0, 50)


@pytest.mark.parametrize("name", UPPER)
@given(counts, deltas, deltas, nats, nats)
def test_upper_bounds_are_monotone(name, count, delta, other, c, more):
    k, n = count
    bound = UPPER[name]
    here = bound(k, n, delta, c)
    assert k / n - 1e-12 <= here <= 1
    assert bound(k, n, max(delta, other), c) <= here + 1e-12
    assert bound(k, n, delta, c + more) >= here - 1e-12
    if k < n:
        assert bound(k + 1, n, delta, c) >= here - 1e-12
    # as many errors among more examples
    assert bound(k, n + 1, delta, c) <= here + 1e-12


@given(counts, deltas)
def test_the_binomial_bound_is_the_smallest(count, delta):
    k, n = count
    exact = clopper_pearson(k, n, delta)
    for name in ("chernoff", "hoeffding", "mixture", "pac_bayes_kl", "prequential"):
        assert UPPER[name](k, n, delta, 0.0) >= exact - 1e-12, name
    assert chernoff(k / n, n, delta) <= hoeffding(k / n, n, delta) + 1e-12
    assert clopper_pearson_lower(k, n, delta) >= chernoff_lower(k / n, n, delta) - 1e-12
    assert clopper_pearson_lower(k, n, delta) <= k / n


@given(st.floats(0, 1), st.floats(0, 10), st.floats(0, 10))
def test_inverses_are_monotone_and_mirrored(q, c, more):
    assert q <= kl_inverse(q, c) <= kl_inverse(q, c + more) + 1e-15 <= 1 + 1e-15
    assert 0 <= kl_inverse_lower(q, c + more) <= kl_inverse_lower(q, c) + 1e-15 <= q + 1e-15
    assert kl_inverse_lower(q, c) == pytest.approx(1 - kl_inverse(1 - q, c), abs=1e-12)


@given(st.floats(0, 0.25), st.integers(2, 10**6), deltas, deltas)
def test_deviations_enclose_and_narrow(var, n, delta, other):
    up, down = deviation_upper(var, n, delta), deviation_lower(var, n, delta)
    assert 0 <= down <= np.sqrt(var) + 1e-12
    assert np.sqrt(var) - 1e-12 <= up <= 0.5
    assert deviation_upper(var, n, max(delta, other)) <= up + 1e-12
    assert deviation_lower(var, n, max(delta, other)) >= down - 1e-12
    assert bernstein_upper(0.3, var, n, delta) >= 0.3


@given(st.floats(-5, 5), st.floats(0.01, 5), st.floats(-5, 5), st.floats(0.01, 5))
def test_a_divergence_is_never_negative(mean, sd, prior_mean, prior_sd):
    assert gaussian_divergence(mean, sd, prior_mean, prior_sd) >= -1e-12


@given(st.integers(1, 512), st.floats(1e-4, 1), st.integers(1, 1000))
def test_effective_sizes_are_ordered(batch, ema_weight, steps):
    size = ema_effective_size(batch, ema_weight, steps)
    assert size.tail <= size.variance * (1 + 1e-9)
    assert batch * (1 - 1e-9) <= size.variance <= batch * steps * (1 + 1e-6)


@pytest.mark.parametrize("name", UPPER)
@pytest.mark.parametrize("n", [1, 10**9])
@pytest.mark.parametrize("delta", [1e-300, 0.5, 1 - 1e-9])
def test_extreme_arguments(name, n, delta):
    for k in {0, n // 1000, n - 1, n}:
        for c in (0.0, 5.0, 1e8):
            found = UPPER[name](k, n, delta, c)
            # where the bound may fail almost surely it may lie below what was observed
            assert (k / n - 1e-9 if delta <= 0.5 else 0) <= found <= 1, (k, c)
    if n > 1 and name != "catoni":  # whose rate is that of smaller samples
        assert UPPER[name](n // 1000, n, 0.05, 0.0) < 0.0012
        assert UPPER[name](n // 1000, n, 1e-300, 0.0) < 0.003


@pytest.mark.parametrize(
    "name", ["catoni", "mixture", "pac_bayes_kl", "one_draw", "one_draw_kl", "one_draw_binomial"]
)
def test_a_divergence_without_end_says_nothing(name):
    assert UPPER[name](3, 100, 0.05, np.inf) == 1
    assert UPPER[name](3, 100, 0.05, 1e12) == 1


def test_a_draw_that_the_prior_likes_better_never_goes_below_the_observed():
    for c in (-1.0, -30.0, -1e4):
        for name in ("one_draw", "one_draw_kl", "one_draw_binomial", "planned"):
            assert UPPER[name](10, 100, 0.05, c) >= 0.1 - 1e-9, name


def test_tiny_levels_are_not_rounded_away():
    assert clopper_pearson(0, 10**9, 1e-300) == pytest.approx(300 * np.log(10) / 1e9, rel=1e-6)
    assert clopper_pearson(5, 100, 1e-300) < 1
    assert clopper_pearson_lower(10**9, 10**9, 1e-300) == pytest.approx(1 - 6.9e-7, abs=1e-8)


def test_arrays_broadcast_to_what_numbers_give():
    k, n = np.array([[0], [5], [20]]), np.array([20, 400])
    for name, bound in UPPER.items():
        found = bound(k, n, 0.05, 0.0)
        assert found.shape == (3, 2)
        assert found[1, 1] == pytest.approx(bound(5, 400, 0.05, 0.0), abs=1e-12), name
        assert isinstance(bound(5, 400, 0.05, 0.0), float), name


BAD_DELTA = [0, 1, -0.1, 1.5, np.nan, "0.05x", None]


@pytest.mark.parametrize("delta", BAD_DELTA)
@pytest.mark.parametrize("name", UPPER)
def test_a_delta_outside_is_refused(name, delta):
    with pytest.raises(CertificateError, match=r"expected delta"):
        UPPER[name](3, 100, delta, 0.0)


@pytest.mark.parametrize("name", UPPER)
def test_losses_and_sizes_outside_are_refused(name):
    for k, n in ((-1, 10), (11, 10), (1, 0.5), (np.nan, 10)):
        with pytest.raises(CertificateError, match=r"expected"):
            UPPER[name](k, n, 0.05, 0.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: catoni(0.1, 10, 0.05, 0.0), "rate > 0"),
        (lambda: catoni(0.1, 10, 0.05, 1.0, divergence=-1), "divergence >= 0"),
        (lambda: pac_bayes_kl(0.1, 10, 0.05, divergence=np.nan), "divergence >= 0"),
        (lambda: monte_carlo(0.1, 10, 5, 0.05, draws="one"), "draws"),
        (lambda: monte_carlo(0.1, 10, 0, 0.05), "passes"),
        (lambda: one_draw_binomial(1, 10, 0.05, log_ratio=0, kappa=1), "kappa"),
        (lambda: one_draw_binomial(1, 9, 0.05, log_ratio=0, expected=(2, 2)), "low < high"),
        (lambda: one_draw_binomial(1, 9, 0.05, log_ratio=0, expected=(0, np.inf)), "low < high"),
        (lambda: one_draw_kl(0.1, 10, 0.05, log_ratio=np.nan), "log_ratio"),
        (lambda: Rates((1.0, 2.0), (0.5, 0.6)), "sum to 1"),
        (lambda: Rates((1.0, np.inf), (0.5, 0.5)), "finite"),
        (lambda: Rates((), ()), "expected finite rates"),
        (lambda: Rates.one(-1), "values > 0"),
        (lambda: catoni_rate(1.5, 10, 0.05), "loss between 0 and 1"),
        (lambda: mixture_root(1, 0, 1, ANYTIME), "n >= 1"),
        (lambda: deviation_upper(0.1, 1, 0.05), "at least 2"),
        (lambda: bernstein_upper(0.1, -1, 5, 0.05), "var >= 0"),
        (lambda: ema_effective_size(4, 1.5), r"\(0, 1\]"),
        (lambda: ema_effective_size(4, 0), "ema_weight > 0"),
        (lambda: fresh_gain(2), "at least 3"),
        (lambda: gaussian_divergence(0, 0, 0, 1), "sd > 0"),
        (lambda: binomial_p_value(1, 10, 2), "p between 0 and 1"),
        (lambda: exponential_moment(0), "at least 1"),
        (lambda: betting_interval([0.1], 0.05, mean_guess=2), "mean_guess"),
        (lambda: empirical_bernstein_interval([[2.0]], 0.05), "x between 0 and 1"),
    ],
)
def test_what_nothing_would_stand_behind_is_refused(call, says):
    with pytest.raises(CertificateError, match=says) as caught:
        call()
    assert isinstance(caught.value, BatchNormError | ValueError)

"""Values: by hand, by scipy, in fifty digits, and by running through every outcome."""

from math import comb, exp, lgamma, log, sqrt

import mpmath
import numpy as np
import pytest
from scipy import stats

from bnkit.core.bounds import (
    Coordinates,
    Rates,
    bernstein_upper,
    binomial_p_value,
    catoni,
    catoni_mixture,
    catoni_rate,
    chernoff,
    clopper_pearson,
    clopper_pearson_lower,
    deviation_lower,
    deviation_upper,
    ema_effective_size,
    exponential_moment,
    fresh_gain,
    gaussian_divergence,
    gaussian_log_ratio,
    hoeffding,
    kl,
    kl_inverse,
    kl_inverse_lower,
    log_wealth,
    mixture_root,
    monte_carlo,
    one_draw,
    one_draw_binomial,
    one_draw_kl,
    own_gain,
    pac_bayes_kl,
    prequential,
    reference_coordinates,
)
from tests.core.bounds import exact

# n, errors; then Clopper-Pearson at delta and 0.9 delta, Chernoff, calibrated binomial, and
# PAC-Bayes-kl with Maurer's constant; delta = 0.05
TABLE = [
    (100, 10, 0.1637, 0.1657, 0.1888, 0.2087, 0.2338),
    (700, 17, 0.0362, 0.0366, 0.0413, 0.0449, 0.0526),
    (3000, 90, 0.0356, 0.0358, 0.0383, 0.0395, 0.0439),
    (30000, 600, 0.0214, 0.0214, 0.0220, 0.0223, 0.0236),
]
# the mixture of eight rates, the same as a grid at delta / 8, any time, PAC-Bayes-kl
OURS = {
    100: [0.1996, 0.2212, 0.2232, 0.2284],
    700: [0.0444, 0.0477, 0.0487, 0.0515],
    3000: [0.0400, 0.0410, 0.0422, 0.0434],
    30000: [0.0226, 0.0228, 0.0231, 0.0235],
}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"n{row[0]}")
def test_the_table_of_bounds_at_no_divergence(row):
    n, k, binomial, less, tuned, calibrated, maurer = row
    q = k / n
    rate = catoni_rate(q, n, 0.05)
    found = (
        clopper_pearson(k, n, 0.05),
        clopper_pearson(k, n, 0.045),
        catoni(q, n, 0.05, rate),
        one_draw_binomial(k, n, 0.05, log_ratio=0.0),
        kl_inverse(q, log(2 * sqrt(n) / 0.05) / n),
    )
    assert [round(v, 4) for v in found] == [binomial, less, tuned, calibrated, maurer]
    assert chernoff(q, n, 0.05) == pytest.approx(found[2], rel=1e-9)
    rates = Rates.for_size(n)
    ours = [
        catoni_mixture(q, n, 0.05, rates),
        min(catoni(q, n, 0.05 / 8, c) for c in rates.values),
        prequential(k, n, 0.05),
        pac_bayes_kl(q, n, 0.05, divergence=0.0),
    ]
    assert [round(v, 4) for v in ours] == OURS[n]
    assert ours[0] <= ours[1]  # a mixture in the place of a union
    assert ours[3] < found[4]  # the sharper moment


def test_kl_by_hand():
    assert kl(0, 0.5) == pytest.approx(log(2))
    assert kl(0.5, 0.25) == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3))
    assert kl(0.3, 0.3) == 0
    assert [kl(0.5, 0), kl(0.5, 1), kl(0, 1), kl(1, 1), kl(0, 0)] == [np.inf] * 3 + [0, 0]


@pytest.mark.parametrize("q", [0, 1e-12, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-9, 1])
@pytest.mark.parametrize("c", [1e-15, 1e-9, 1e-4, 0.01, 1, 20])
def test_the_inverse_never_falls_short_and_hardly_exceeds(q, c):
    up, down = kl_inverse(q, c), kl_inverse_lower(q, c)
    assert up == 1 or exact.entropy(q, up) >= c
    assert down == 0 or exact.entropy(q, down) >= c
    # a little nearer to q it would be too small: by as much as a double can tell
    assert exact.entropy(q, q + (up - q) * (1 - 1e-9) - 4e-16 * (q + up)) < c or up - q < 1e-15
    assert exact.entropy(q, q - (q - down) * (1 - 1e-9) + 4e-16 * q) < c or q - down < 1e-15


def test_the_inverse_at_no_error_is_closed():
    for c in (1e-9, 0.01, 3.0):
        assert kl_inverse(0, c) == pytest.approx(1 - exp(-c), rel=1e-9)
        assert kl_inverse_lower(1, c) == pytest.approx(exp(-c), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-9])
def test_clopper_pearson_solves_its_equation(n, delta):
    for k in range(n):
        p = clopper_pearson(k, n, delta)
        assert exact.binomial_tail(k, n, p) == pytest.approx(mpmath.mpf(delta), rel=1e-8)
        low = clopper_pearson_lower(n - k, n, delta)
        assert low == pytest.approx(1 - p, rel=1e-6, abs=1e-12)
        assert binomial_p_value(k, n, p) == pytest.approx(delta, rel=1e-8)
    assert clopper_pearson(n, n, delta) == 1
    assert clopper_pearson_lower(0, n, delta) == 0
    assert clopper_pearson(0, n, delta) == pytest.approx(1 - delta ** (1 / n), rel=1e-9)


def test_clopper_pearson_is_that_of_scipy():
    for k, n in ((0, 7), (3, 7), (7, 7), (12, 400)):
        both = stats.binomtest(k, n).proportion_ci(0.9, "exact")
        assert clopper_pearson_lower(k, n, 0.05) == pytest.approx(both.low, abs=1e-12)
        assert clopper_pearson(k, n, 0.05) == pytest.approx(both.high, abs=1e-12)


BINOMIAL_BOUNDS = {
    "clopper_pearson": lambda k, n, d: clopper_pearson(k, n, d),
    "chernoff": lambda k, n, d: chernoff(k / n, n, d),
    "hoeffding": lambda k, n, d: hoeffding(k / n, n, d),
    "catoni": lambda k, n, d: catoni(k / n, n, d, 0.7),
    "mixture": lambda k, n, d: catoni_mixture(k / n, n, d, Rates.for_size(n)),
    "anytime": lambda k, n, d: prequential(k, n, d),
    "one draw of one": lambda k, n, d: one_draw_binomial(k, n, d, log_ratio=0.0),
    "planned": lambda k, n, d: one_draw_binomial(k, n, d, log_ratio=0.0, expected=(0.0, 1.0)),
    "one draw, kl": lambda k, n, d: one_draw_kl(k / n, n, d, log_ratio=0.0),
    "pac-bayes-kl": lambda k, n, d: pac_bayes_kl(k / n, n, d, divergence=0.0),
    "kl, nothing paid": lambda k, n, d: kl_inverse(k / n, 0.0 * log(1 / d)),
}


def _missed(name, n, delta, risks):
    """Probability, for each risk, that the bound lies below it."""
    k = np.arange(n + 1)[:, None]
    bounds = np.array([BINOMIAL_BOUNDS[name](int(i), n, delta) for i in k[:, 0]])
    mass = stats.binom.pmf(k, n, risks)
    return (mass * (bounds[:, None] < risks)).sum(axis=0)


@pytest.mark.parametrize("name", BINOMIAL_BOUNDS)
def test_no_bound_fails_more_often_than_it_says(name):
    worst = max(
        (_missed(name, n, delta, np.linspace(0.01, 0.99, 99)) - delta).max()
        for n in (1, 4, 11)
        for delta in (0.05, 0.2, 0.5)
    )
    if name == "kl, nothing paid":
        assert worst > 0.1  # the enumeration sees an invalid one
    else:
        assert worst <= 1e-12


def test_clopper_pearson_is_exact_just_below_its_own_values():
    for k in range(5):
        p = clopper_pearson(k, 6, 0.05)
        missed = _missed("clopper_pearson", 6, 0.05, np.array([p * (1 + 1e-9)]))
        assert missed[0] == pytest.approx(0.05, rel=1e-6)


def test_the_moment_of_maurer_by_summation():
    def moment(n):
        return (
            mpmath.fsum(
                comb(n, k) * mpmath.mpf(k) ** k * mpmath.mpf(n - k) ** (n - k) for k in range(n + 1)
            )
            / mpmath.mpf(n) ** n
        )

    for n in (*range(1, 40), 100, 500):
        assert moment(n) <= exponential_moment(n) * (1 + 1e-12) <= 2 * sqrt(n) * (1 + 1e-12)
    assert exponential_moment(500) / float(moment(500)) < 1.01


def test_monte_carlo_is_chernoff_over_all_draws():
    assert monte_carlo(0.1, 50, 20, 0.01) == chernoff(0.1, 1000, 0.01)
    assert monte_carlo(0.1, 50, 20, 0.01, draws="shared") == chernoff(0.1, 20, 0.01)


def test_a_planned_ratio_pays_the_length_of_its_range():
    def level(log_ratio):
        return one_draw_binomial(17, 700, 0.05, log_ratio=log_ratio, expected=(0.0, 1.0))

    for nats in (0.0, 0.4, 1.0):
        assert level(nats) == clopper_pearson(17, 700, 0.05 * exp(-nats) * 0.9 / 2)
    assert level(-3.0) == level(0.0)
    # beyond the range a tenth of the old calibrator is left
    beyond = (0.1 * 0.15 * 0.05 * exp(-1.1)) ** (1 / 0.85)
    assert level(1.1) == pytest.approx(clopper_pearson(17, 700, beyond), rel=1e-9)
    # the target of the issue, at the divergence that was measured there
    assert level(0.14) < 1.1 * clopper_pearson(17, 700, 0.05)


@pytest.mark.parametrize("expected", [(0.0, 1.0), (-2.0, 5.0)])
def test_levels_are_those_of_one_falling_function(expected):
    """`g` of statement 12, written out: no level may lie where g is below ratio / delta."""
    low, high = expected
    w, kappa, delta, c = 0.9, 0.15, 0.05, 1 / (1 + expected[1] - expected[0])
    least, most = w * c * delta * exp(-high), w * c * delta * exp(-low)

    def g(u):
        planned = c * min(1 / u, 1 / least) if u <= most else 0.0
        return w * planned + (1 - w) * kappa * u ** (kappa - 1)

    for nats in np.linspace(low - 2, high + 3, 41):
        # clopper_pearson(0, 1, x) = 1 - x
        x = 1 - one_draw_binomial(0, 1, delta, log_ratio=nats, expected=expected)
        assert g(x * (1 - 1e-9)) >= exp(nats) / delta * (1 - 1e-6)


def test_calibrators_have_integral_one():
    """By the levels they give: the integral of a falling f is that of its level sets."""
    for expected in (None, (0.0, 1.0), (-1.0, 4.0)):
        # f(u) > y exactly below the level at ratio / delta = y; clopper_pearson(0, 1, x) = 1 - x
        y = np.geomspace(1e-4, 1e14, 400_001)
        levels = 1 - np.asarray(
            one_draw_binomial(0, 1, 0.5, log_ratio=np.log(y / 2), expected=expected)
        )
        integral = np.sum((levels[1:] + levels[:-1]) / 2 * np.diff(y))
        # capped at one half, and the larger of two parts instead of their sum
        assert 0.4 < integral <= 1.001


def test_one_rate_is_catoni():
    found = catoni_mixture(0.1, 200, 0.05, Rates.one(0.5), divergence=1.5)
    assert found == pytest.approx(catoni(0.1, 200, 0.05, 0.5, divergence=1.5), rel=1e-9)
    ratio = one_draw(0.1, 200, 0.05, Rates.one(0.5), log_ratio=1.5)
    assert ratio == found


def test_the_root_is_where_the_wealth_is():
    rates = Rates.for_size(500)
    for total in (0, 3, 40.5, 250):
        root = mixture_root(total, 500, 3.0, rates)
        assert log_wealth(total, 500, root, rates) >= 3.0
        assert log_wealth(total, 500, root * (1 - 1e-9), rates) < 3.0


def test_prequential_bounds_hold_at_all_times_for_predictors_that_look_back():
    """Every path of nine losses; the risk of the next depends on the losses so far."""
    n, delta, rates = 9, 0.3, Rates.anytime(6)
    bounds = [[prequential(k, t, delta, rates) for k in range(t + 1)] for t in range(1, n + 1)]
    found = 0.0
    for path in range(2**n):
        losses = [(path >> t) & 1 for t in range(n)]
        weight, risks, broken = 1.0, [], False
        for t, loss in enumerate(losses):
            # worse after success: an adversary that lulls
            risk = 0.15 + 0.7 * (sum(losses[:t]) < 0.3 * t)
            risks.append(risk)
            weight *= risk if loss else 1 - risk
            broken |= sum(risks) / (t + 1) > bounds[t][sum(losses[: t + 1])]
        found += weight * broken
    assert 0 < found <= delta


def test_divergence_and_ratio_of_gaussians_against_scipy():
    q, p = stats.norm(0.3, 0.5), stats.norm(-0.2, 1.5)
    x = np.linspace(-6, 6, 200001)
    by_sum = np.sum(q.pdf(x) * (q.logpdf(x) - p.logpdf(x))) * (x[1] - x[0])
    assert gaussian_divergence(0.3, 0.5, -0.2, 1.5) == pytest.approx(by_sum, rel=1e-6)
    ratio = gaussian_log_ratio(0.7, 0.3, 0.5, -0.2, 1.5)
    assert ratio == pytest.approx(q.logpdf(0.7) - p.logpdf(0.7))
    assert gaussian_divergence([1.0, 2.0], 0.1, [1.0, 2.0], 0.1) == 0


def test_deviations_are_sharper_than_those_of_maurer_and_pontil():
    for n in (2, 10, 300):
        for var in (0.0, 1e-4, 0.02, 0.2):
            for delta in (0.5, 0.05, 1e-6):
                slack = sqrt(2 * log(1 / delta) / (n - 1))
                assert deviation_upper(var, n, delta) <= sqrt(var) + slack + 1e-15
                assert deviation_lower(var, n, delta) >= sqrt(var) - slack / sqrt(2) - 1e-9
                mean = 0.4 + sqrt(2 * var * log(2 / delta) / n)
                mean += 7 * log(2 / delta) / (3 * (n - 1))
                assert bernstein_upper(0.4, var, n, delta) <= mean + 1e-12


@pytest.mark.parametrize("var", [0.0, 1e-3, 0.04, 0.15])
def test_deviations_solve_the_tail_inequalities(var):
    n, delta = 400, 0.01
    nats = log(1 / delta)
    up, down = deviation_upper(var, n, delta), deviation_lower(var, n, delta)
    assert (n - 1) * (up**2 - var) ** 2 / (2 * up**2) == pytest.approx(nats)
    if down > 0:
        assert (n - 1) * (var - down**2) ** 2 / (down**2 + var) == pytest.approx(nats)
    else:
        assert (n - 1) * var <= nats
    # Bernstein's inequality at half of delta, with the deviation at the other half
    s, off = deviation_upper(var, n, delta / 2), bernstein_upper(0.3, var, n, delta) - 0.3
    rate = sqrt(2 * log(2 / delta) / (n * s**2))
    rate /= 1 + rate / 3
    exponent = n * (s**2 * rate**2 / (2 * (1 - rate / 3)) - rate * off)
    assert exponent == pytest.approx(-log(2 / delta))


def test_deviations_hold_over_every_outcome():
    values = (0.0, 0.5, 1.0)
    for weights in ((0.9, 0.05, 0.05), (0.5, 0.0, 0.5), (0.05, 0.05, 0.9)):
        mean = np.dot(values, weights)
        sd = sqrt(np.dot(np.square(values), weights) - mean**2)
        for delta in (0.1, 0.5):

            def wrong(x, delta=delta, mean=mean, sd=sd):
                var, n = x.var(axis=0, ddof=1), len(x)
                return np.array(
                    [
                        deviation_upper(var, n, delta) < sd - 1e-12,
                        deviation_lower(var, n, delta) > sd + 1e-12,
                        bernstein_upper(x.mean(axis=0), var, n, delta) < mean - 1e-12,
                    ]
                )

            for which in range(3):
                missed = exact.chance(values, weights, 7, lambda x, w=which, f=wrong: f(x)[w])
                assert missed <= delta


def test_effective_size_is_the_inverse_sum_of_squares():
    b, m, steps = 4, 0.2, 11
    weights = np.repeat(m * (1 - m) ** np.arange(steps), b) / b
    share = weights / weights.sum()
    size = ema_effective_size(b, m, steps)
    assert size.variance == pytest.approx(1 / np.sum(share**2))
    assert size.tail == pytest.approx(1 / share.max())
    assert size.initial == pytest.approx((1 - m) ** steps)
    assert ema_effective_size(b, m, 10**6).variance == pytest.approx(ema_effective_size(b, m)[0])


def test_the_size_for_the_variance_is_wrong_for_a_tail():
    """One example a batch, m = 0.1, a loss of probability 1e-4: Chernoff needs `1 / max w`."""
    m, p = 0.1, 1e-4
    size = ema_effective_size(1, m)
    # a loss in the newest example alone brings the average to m: that happens with probability p
    assert exp(-size.variance * kl(m, p)) == pytest.approx(1.2e-5, rel=0.02)  # rarer than it is
    assert exp(-size.tail * kl(m, p)) >= p


def test_gains_by_simulation_and_by_stein():
    rng = np.random.default_rng(0)
    for b in (4, 8, 16):
        x = rng.standard_normal((200_000, b))
        sd = x.std(axis=1)
        assert np.mean(1 / sd) == pytest.approx(fresh_gain(b), rel=0.01)
        z = (x - x.mean(axis=1, keepdims=True)) / sd[:, None]
        assert np.mean(x * z) == pytest.approx(own_gain(b), rel=0.01)
        assert own_gain(b) == pytest.approx((b - 2) / b * fresh_gain(b))
    assert own_gain(4) == pytest.approx(sqrt(0.5) / exp(lgamma(1.5)))


def test_the_folding_lemma():
    rng = np.random.default_rng(0)
    weight, bias, mean, mean0 = rng.standard_normal((4, 5))
    var, var0 = rng.random((2, 5)) + 0.1
    moved = reference_coordinates(Coordinates(weight, bias), (mean, var), (mean0, var0), eps=0.01)
    h = rng.standard_normal((50, 5))
    there = moved.weight * (h - mean0) / np.sqrt(var0 + 0.01) + moved.bias
    np.testing.assert_allclose(there, weight * (h - mean) / np.sqrt(var + 0.01) + bias, rtol=1e-12)

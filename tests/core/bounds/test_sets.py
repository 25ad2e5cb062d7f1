"""Confidence sets of means: over every outcome, against a plain loop, merged and mirrored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit.core.bounds import (
    PowerSums,
    betting_interval,
    empirical_bernstein_interval,
    power_sums_interval,
    variance_interval,
)
from bnkit.core.bounds.power_sums import _REST, LARGEST_BET
from bnkit.core.errors import CertificateError
from tests.core.bounds import exact


def powers(x, delta, mean_guess=0.5, var_guess=0.25):
    sums = PowerSums.empty(mean_guess, x.shape[1]).add(x)
    return power_sums_interval(sums, delta, var_guess=var_guess, planned=len(x))


SETS = {"betting": betting_interval, "bernstein": empirical_bernstein_interval, "powers": powers}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("weights", [(0.9, 0.05, 0.05), (0.3, 0.4, 0.3), (0.0, 0.2, 0.8)])
def test_the_mean_is_missed_no_more_often_than_said(name, weights):
    values = (0.0, 0.4, 1.0)
    mean = float(np.dot(values, weights))

    def missed(x, **options):
        lower, upper = SETS[name](x, **options)
        return (lower > mean + 1e-12) | (upper < mean - 1e-12)

    for delta in (0.1, 0.5, 0.9):
        for guess in (0.02, 0.25):  # a wrong guess costs width only
            options = {"delta": delta, "var_guess": guess}
            assert exact.chance(values, weights, 8, lambda x, o=options: missed(x, **o)) <= delta


def test_an_interval_that_is_too_narrow_would_be_seen():
    def missed(x):
        lower, upper = betting_interval(x, 0.1)
        middle = (lower + upper) / 2
        return np.abs(middle - 0.4) > 0.3 * (upper - lower) / 2

    assert exact.chance((0.0, 1.0), (0.6, 0.4), 10, missed) > 0.1


def test_betting_against_a_plain_loop():
    x = np.random.default_rng(3).beta(2, 5, 100)
    delta = 0.1

    def capital(mean):
        seen, total, square, wealth = 1.0, 0.5, 0.25, 1.0
        for start in range(0, 100, 32):
            block = x[start : start + 32]
            center = total / seen
            bet = min(np.sqrt(2 * np.log(2 / delta) / (100 * square / seen)), 100, 0.75 / mean)
            for value in block:
                wealth *= 1 + bet * (value - mean)
            total += sum(block)
            square += sum((block - center) ** 2)
            seen += len(block)
        return wealth

    lower, _ = betting_interval(x, delta)
    assert capital(lower) >= 2 / delta > capital(lower + 2e-7)


def test_empirical_bernstein_against_a_plain_loop():
    x = np.random.default_rng(4).beta(2, 5, 70)
    delta, weight, value, slack = 0.1, 0.0, 0.0, 0.0
    seen, total, square = 1.0, 0.5, 0.25
    for start in range(0, 70, 32):
        block, center = x[start : start + 32], total / seen
        bet = min(np.sqrt(2 * np.log(2 / delta) / (70 * square / seen)), 0.5)
        weight += bet * len(block)
        value += bet * sum(block)
        slack += (-np.log(1 - bet) - bet) * sum((block - center) ** 2)
        square += sum((block - center) ** 2)
        total += sum(block)
        seen += len(block)
    slack += np.log(2 / delta)
    expected = (value - slack) / weight, (value + slack) / weight
    assert empirical_bernstein_interval(x, delta) == pytest.approx(expected, rel=1e-12)


def test_widths_fall_and_betting_is_the_narrowest():
    rng = np.random.default_rng(0)
    before = np.inf
    for n in (300, 1200, 4800):
        x = np.clip(0.5 + rng.standard_normal((n, 16)) / 12, 0, 1)
        widths = {
            name: float(np.mean(np.subtract(*make(x, 0.01, var_guess=1 / 144)[::-1])))
            for name, make in SETS.items()
        }
        assert widths["betting"] < widths["powers"] < widths["bernstein"] < before
        before = widths["bernstein"]
        # 1.0 = the width of the normal law, which is no guarantee
        normal = 2 * 2.576 / 12 / np.sqrt(n)
        assert 1 < widths["betting"] / normal < 1.6


def test_one_channel_or_many_and_mirrored():
    x = np.random.default_rng(1).beta(1, 3, (200, 3))
    for name, make in SETS.items():
        lower, upper = make(x, 0.05)
        alone = make(x[:, 1:2], 0.05)
        assert float(alone[0][0]) == pytest.approx(lower[1], abs=1e-12)
        other = make(1 - x, 0.05)
        np.testing.assert_allclose(1 - upper, other[0], atol=1e-9, err_msg=name)
    assert betting_interval(x[:, 0], 0.05) == tuple(float(e[0]) for e in betting_interval(x, 0.05))


parts = st.lists(st.lists(st.floats(0, 1), min_size=0, max_size=20), min_size=1, max_size=4)


@given(parts)
def test_streams_merge(streams):
    whole = PowerSums.empty(0.3, 1)
    merged = PowerSums.empty(0.3, 1)
    for stream in streams:
        x = np.array(stream).reshape(-1, 1)
        whole = whole.add(x)
        merged = merged.merge(PowerSums.empty(0.3, 1).add(x))
    assert whole.count == merged.count
    np.testing.assert_allclose(whole.sums, merged.sums, atol=1e-12)
    x = np.array([v for stream in streams for v in stream])
    direct = [np.sum((x - 0.3) ** p) for p in (1, 2, 3, 4)]
    np.testing.assert_allclose(whole.sums[:, 0], direct, atol=1e-12)


def test_the_polynomial_lies_below_the_logarithm_and_is_monotone():
    y = np.linspace(-LARGEST_BET, LARGEST_BET, 100001)
    poly = y - y**2 / 2 + y**3 / 3 + _REST * y**4
    assert np.all(poly <= np.log1p(y) + 1e-15)
    assert np.all(np.diff(poly) > 0)
    assert np.any(y - y**2 / 2 + y**3 / 3 > np.log1p(y))  # the fourth power is needed


@pytest.mark.parametrize("make", [betting_interval, empirical_bernstein_interval])
def test_sets_refuse(make):
    for bad in ([0.2, 1.2], [np.nan], [], np.zeros((2, 2, 2)), "x"):
        with pytest.raises(CertificateError, match=r"expected"):
            make(bad, 0.05)
    for option in ({"delta": 0}, {"delta": 1}, {"delta": 0.1, "var_guess": 0}):
        with pytest.raises(CertificateError, match=r"expected"):
            make([0.1, 0.2], **option)


def test_power_sums_refuse():
    empty = PowerSums.empty(0.5, 2)
    with pytest.raises(CertificateError, match="at least one value"):
        power_sums_interval(empty, 0.1, var_guess=0.1, planned=10)
    with pytest.raises(CertificateError, match="one center"):
        empty.merge(PowerSums.empty(0.4, 2))
    for bad in (np.full((1, 2), 1.5), np.full((1, 2), np.nan), np.zeros((1, 3))):
        with pytest.raises(CertificateError, match="expected"):
            empty.add(bad)


def test_a_variance_from_two_sets_by_hand():
    assert variance_interval((-1.0, 3.0), (16.0, 20.0), 0.0) == (7.0, 20.0)  # center inside
    assert variance_interval((2.0, 3.0), (16.0, 20.0), 0.0) == (7.0, 16.0)
    assert variance_interval((-3.0, -2.0), (16.0, 20.0), 0.0) == (7.0, 16.0)
    assert variance_interval((2.0, 3.0), (16.0, 20.0), 1.0) == (12.0, 19.0)
    assert variance_interval((0.0, 9.0), (16.0, 20.0), 0.0)[0] == 0.0
    for bad in (((1.0, 0.0), (0.0, 1.0)), ((0.0, 1.0), (np.nan, 1.0))):
        with pytest.raises(CertificateError, match="exchanged"):
            variance_interval(*bad, 0.0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(-5, 5), st.floats(0, 2))
def test_a_variance_lies_in_its_set_if_the_moments_do_in_theirs(values, center, slack):
    x = np.array(values)
    mean, square = x.mean(), np.mean((x - center) ** 2)
    low, high = variance_interval(
        (mean - slack, mean + 2 * slack), (square - slack / 2, square + slack), center
    )
    assert low - 1e-9 <= x.var() <= high + 1e-9

"""The mathematics of batch renormalization on every array namespace, against fifteen lines."""

import numpy as np
import pytest

from bnkit.core import (
    RenormLimits,
    RenormSchedule,
    RenormWeights,
    SpecError,
    initial_renorm,
    renorm_correction,
    update_renorm,
)
from tests.tolerances import FLOAT64

EPS, P, Q = 1e-3, 0.15, 0.25


def by_hand(rule, batches, limits):
    """TensorFlow's two algorithms, written with the weights of the old averages as it does."""
    p, q = 1 - P, 1 - Q
    c = batches[0].shape[1]
    mm, mv, rm = np.zeros(c), np.ones(c), np.zeros(c)
    rs = np.zeros(c) if rule == "debiased" else np.ones(c)
    w, ms, found = 0.0, np.ones(c), []
    for x in batches:
        mu, s = x.mean(0), np.sqrt(x.var(0) + EPS)
        if rule == "debiased":
            ref_mean, ref_std = rm + (1 - w) * mu, rs + (1 - w) * s
        else:
            ref_mean, ref_std = rm, np.maximum(rs, np.sqrt(EPS))
        r, d = s / ref_std, (mu - ref_mean) / ref_std
        r = r if limits.rmin is None else np.maximum(r, limits.rmin)
        r = r if limits.rmax is None else np.minimum(r, limits.rmax)
        d = d if limits.dmax is None else np.clip(d, -limits.dmax, limits.dmax)
        rm, rs, w = q * rm + Q * mu, q * rs + Q * s, q * w + Q
        if rule == "debiased":
            mm, mv = p * mm + P * rm / w, p * mv + P * ((rs / w) ** 2 - EPS)
        else:
            mm, ms = p * mm + P * mu, p * ms + P * s
            mv = np.maximum(ms**2 - EPS, 0)
        found.append((r, d, mm, mv))
    return found


def batches():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((6, 4)) * (0.3 + k) + k for k in range(4)]


@pytest.mark.parametrize("rule", ["plain", "debiased"])
@pytest.mark.parametrize(
    "limits",
    [
        RenormLimits(),
        RenormLimits(rmin=0.7, rmax=1.4, dmax=0.5),
        RenormLimits(rmax=1.1),
        RenormLimits(rmin=1.3),
        RenormLimits(dmax=0.1),
    ],
)
def test_both_rules(space, rule, limits):
    xp = space.xp
    stats = initial_renorm(xp, space(np.zeros(4)), rule)
    for x, expected in zip(batches(), by_hand(rule, batches(), limits), strict=True):
        pair = space(x.mean(0)), space(np.sqrt(x.var(0) + EPS))
        r, d = renorm_correction(xp, stats, pair, limits, eps=EPS)
        stats = update_renorm(xp, stats, pair, RenormWeights(P, Q), eps=EPS)
        got = r, d, stats.running_mean, stats.running_var
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(space.back(a), b, rtol=FLOAT64, atol=FLOAT64)


def test_the_first_step_of_the_debiased_rule_is_plain_batch_norm():
    x = batches()[2]
    stats = initial_renorm(np, np.zeros(4), "debiased")
    r, d = renorm_correction(np, stats, (x.mean(0), x.std(0)), RenormLimits(), eps=EPS)
    np.testing.assert_allclose(r, 1, rtol=FLOAT64)
    np.testing.assert_allclose(d, 0, atol=FLOAT64)


def test_unbounded_training_is_inference_by_the_reference():
    """With one weight for both averages, the paper's point."""
    stats = initial_renorm(np, np.zeros(4), "plain")
    for x in batches():
        mean, stddev = x.mean(0), np.sqrt(x.var(0) + EPS)
        r, d = renorm_correction(np, stats, (mean, stddev), RenormLimits(), eps=EPS)
        trained = (x - mean) / stddev * r + d
        np.testing.assert_allclose(trained, (x - stats.mean) / stats.stddev, rtol=1e-9, atol=1e-9)
        stats = update_renorm(np, stats, (mean, stddev), RenormWeights(P, P), eps=EPS)
        np.testing.assert_allclose(stats.mean, stats.running_mean, rtol=FLOAT64)
        np.testing.assert_allclose(stats.stddev, np.sqrt(stats.running_var + EPS), rtol=FLOAT64)


def test_a_reference_that_never_moves_leaves_inference_alone():
    stats = initial_renorm(np, np.zeros(4), "debiased")
    pair = np.full(4, 3.0), np.full(4, 2.0)
    after = update_renorm(np, stats, pair, RenormWeights(P, 0.0), eps=EPS)
    assert (after.running_mean == 0).all()
    assert (after.running_var == 1).all()


def test_a_vanishing_stddev_gives_no_negative_variance():
    stats = initial_renorm(np, np.zeros(1), "plain")._replace(running_stddev=np.full(1, 1e-2))
    pair = np.zeros(1), np.full(1, np.sqrt(EPS))
    assert update_renorm(np, stats, pair, RenormWeights(0.5, 0.5), eps=EPS).running_var == 0


def test_a_nan_stays_a_nan():
    stats = initial_renorm(np, np.zeros(1), "plain")
    limits = RenormLimits(rmin=0.5, rmax=2, dmax=1)
    r, d = renorm_correction(np, stats, (np.full(1, np.nan), np.full(1, np.nan)), limits, eps=EPS)
    assert np.isnan(r).all()
    assert np.isnan(d).all()


@pytest.mark.parametrize(
    ("batches", "rmax", "dmax"),
    [(0, 1, 0), (5_000, 1, 0), (22_500, 2, 4.375), (25_000, 1 + 2 * 4 / 7, 5), (40_000, 3, 5),
     (10**6, 3, 5)],
)  # fmt: skip
def test_the_schedule_of_the_paper(space, batches, rmax, dmax):
    for given in (batches, space(np.asarray(float(batches)))):
        limits = RenormSchedule().at(given)
        got = [float(v) for v in limits]
        np.testing.assert_allclose(got, [1 / rmax, rmax, dmax], rtol=1e-6)


def test_a_schedule_may_be_a_step():
    schedule = RenormSchedule(rmax=2, dmax=1, start=3, rmax_end=3, dmax_end=3)
    assert schedule.at(2) == (1, 1, 0)
    assert schedule.at(3) == (0.5, 2, 1)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: RenormLimits(rmin=2, rmax=1), "expected rmin <= rmax, got rmin=2 and rmax=1"),
        (lambda: RenormLimits(dmax=-1), "dmax to be a finite number >= 0, got -1"),
        (lambda: RenormLimits(rmax=float("nan")), "rmax to be a finite number"),
        (lambda: RenormLimits(rmin="0.5"), "rmin to be a finite number"),
        (lambda: RenormLimits(rmax=True), "rmax to be a finite number"),
        (lambda: RenormSchedule(rmax=0.5), "expected rmax >= 1, got 0.5"),
        (lambda: RenormSchedule(start=30_000), "expected start <= dmax_end"),
        (lambda: RenormSchedule(dmax=None), "dmax to be a finite number >= 0, got None"),
        (lambda: initial_renorm(np, np.zeros(1), "keras"), "one of 'plain', 'debiased'"),
    ],
)
def test_bad_limits(make, match):
    with pytest.raises(SpecError, match=match):
        make()

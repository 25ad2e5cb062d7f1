"""Running and population statistics: every averaging rule, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from bnkit.core import (
    BNKIT,
    CAFFE,
    EQUINOX_BATCH,
    EQUINOX_EMA,
    HAIKU,
    InputError,
    SpecError,
    correction_factor,
    initial_running,
    moments,
    population_statistics,
    read_running,
    update_running,
)

rng = np.random.default_rng(0)
BATCHES = [rng.normal(i, 1 + i, (8, 2)) for i in range(4)]
MOMENTS = [moments(b, (0,)) for b in BATCHES]


def replay(spec, batches=MOMENTS):
    stats = initial_running(np.zeros(2), spec)
    for b in batches:
        stats = update_running(stats, b, spec)
    return stats


def test_exponential_average_by_hand():
    mean, var = np.zeros(2), np.ones(2)
    for b in BATCHES:
        mean = 0.9 * mean + 0.1 * b.mean(0)
        var = 0.9 * var + 0.1 * b.var(0, ddof=1)
    stats = replay(BNKIT)
    np.testing.assert_allclose(stats.mean, mean)
    np.testing.assert_allclose(stats.var, var)
    assert stats.batches == 4
    assert stats.weight == pytest.approx(1 - 0.9**4)


def test_cumulative_average_is_the_plain_mean():
    stats = replay(replace(BNKIT, ema_weight=None))
    np.testing.assert_allclose(stats.var, np.mean([b.var(0, ddof=1) for b in BATCHES], 0))


def test_equinox_copies_the_first_batch():
    np.testing.assert_allclose(replay(EQUINOX_EMA, MOMENTS[:1]).var, BATCHES[0].var(0))


def test_equinox_batch_mode_overestimates_the_variance():
    """99 + var after the first default step: its variance starts at one and is debiased."""
    _, var = read_running(replay(EQUINOX_BATCH, MOMENTS[:1]), EQUINOX_BATCH)
    np.testing.assert_allclose(var, 99 + BATCHES[0].var(0))


@pytest.mark.parametrize("spec", [HAIKU, CAFFE])
def test_debiased_averages_are_weighted_means(spec):
    keep = 1 - spec.ema_weight
    w = np.array([keep**i for i in range(4)][::-1])
    ddof = spec.running_correction
    mean, var = read_running(replay(spec), spec)
    np.testing.assert_allclose(mean, np.average([b.mean(0) for b in BATCHES], 0, w))
    np.testing.assert_allclose(var, np.average([b.var(0, ddof=ddof) for b in BATCHES], 0, w))


def test_reading_before_the_first_batch():
    stats = initial_running(np.zeros(2), HAIKU)
    np.testing.assert_array_equal(read_running(stats, HAIKU)[1], np.zeros(2))


@pytest.mark.parametrize(
    ("correction", "factor"),
    [(0, 1.0), (1, 8 / 7), ("n-1-eps", 8 / (7 - 1e-3)), ("double", 8 / 7 * 8 / (7 - 1e-3))],
)
def test_corrections(correction, factor):
    spec = replace(BNKIT, running_correction=correction, eps=1e-3)
    assert correction_factor(spec, 8) == pytest.approx(factor)
    assert correction_factor(spec, 1) == 1
    np.testing.assert_allclose(correction_factor(spec, np.array([8.0])), [factor])


def test_other_second_moments_are_refused():
    spec = replace(BNKIT, tracked_second_moment="stddev")
    with pytest.raises(SpecError, match="expected tracked_second_moment='variance'"):
        replay(spec)


def test_the_paper_and_the_pool():
    paper = population_statistics(MOMENTS, "paper")
    np.testing.assert_allclose(paper.var, 8 / 7 * np.mean([b.var(0) for b in BATCHES], 0))
    whole = np.concatenate(BATCHES)
    pooled = population_statistics(MOMENTS)
    np.testing.assert_allclose(pooled.mean, whole.mean(0))
    np.testing.assert_allclose(pooled.var, whole.var(0, ddof=1))
    assert (pooled.count, pooled.batches, pooled.estimator) == (32, 4, "pooled")
    cumulative = population_statistics(MOMENTS, "cumulative")
    np.testing.assert_allclose(cumulative.var, paper.var)
    np.testing.assert_allclose(population_statistics(MOMENTS, "ema").var, replay(BNKIT).var)


def test_the_papers_estimator_is_unbiased():
    """Its mean over many draws is the true variance; without m / (m - 1) it is 3/4 of it."""
    draws = rng.normal(0, 3, (4000, 4, 1))
    estimate = population_statistics([moments(d, (0,)) for d in draws], "paper").var
    # standard error: sigma^2 * sqrt(2 / 3) / sqrt(4000)
    assert abs(float(estimate[0]) - 9) < 5 * 9 * np.sqrt(2 / 3 / 4000)


def test_bad_requests():
    with pytest.raises(InputError, match="at least one batch"):
        population_statistics([])
    with pytest.raises(SpecError, match="unknown estimator 'median'"):
        population_statistics(MOMENTS, "median")
    one = moments(np.ones((1, 2)), (0,))
    with pytest.raises(InputError, match="divides by m - 1"):
        population_statistics([one], "paper")
    with pytest.raises(InputError, match="has no variance"):
        population_statistics([one])
    with pytest.raises(InputError, match="batches of one size"):
        population_statistics([*MOMENTS, moments(BATCHES[0][:3], (0,))], "paper")

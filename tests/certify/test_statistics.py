"""Sets for mean and variance of channels: they cover, narrow, merge, and count images, not pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit.bench.certify import allowance
from bnkit.certify import ChannelMoments, StatisticsSets
from bnkit.certify.statistics import RANGE
from bnkit.core.errors import CertificateError

CHANNELS = 8


def moments(mean=0.0, sd=1.0, channels=CHANNELS):
    return ChannelMoments.empty(np.full(channels, mean), np.full(channels, sd))


def clipped_law(draw, center, scale):
    """Mean and variance after the clip, from ten million draws' worth of quantiles."""
    x = np.clip(draw, center - RANGE * scale, center + RANGE * scale)
    return x.mean(), x.var()


LAWS = {
    # an even grid of probabilities through the inverse distribution function: no chance in it
    "exponential": lambda u: -np.log1p(-u),
    "two points": lambda u: np.where(u < 0.05, 4.0, -0.2),
    "heavy": lambda u: np.sign(u - 0.5) * (1 / (1 - np.abs(2 * u - 1)) - 1) ** 0.7,
}


@pytest.mark.parametrize("law", LAWS)
def test_all_channels_are_covered_as_often_as_said(law):
    rng = np.random.default_rng(0)
    quantile = LAWS[law]
    mean, var = clipped_law(quantile((np.arange(10**6) + 0.5) / 10**6), 0.0, 1.0)
    delta, repeats, wrong, too_narrow = 0.5, 120, 0, 0
    for _ in range(repeats):
        sets = moments().add(quantile(rng.random((300, CHANNELS)))).sets(delta)
        truth = np.full(CHANNELS, mean), np.full(CHANNELS, var)
        wrong += not sets.contains(*truth).all()
        middle = (sets.mean_lower + sets.mean_upper) / 2
        half = (sets.mean_upper - sets.mean_lower) / 2
        too_narrow += bool((np.abs(mean - middle) > 0.2 * half).any())
    assert wrong <= allowance(repeats, delta)
    assert too_narrow > allowance(repeats, delta)


def test_widths_against_the_normal_law():
    x = np.random.default_rng(0).standard_normal((8000, 64))
    sets = moments(channels=64).add(x).sets(0.05)
    # 64 channels, two sets each: 0.05 / 128 two-sided is 3.55 standard errors
    assert 1 < np.mean(sets.mean_upper - sets.mean_lower) / (2 * 3.55 / np.sqrt(8000)) < 1.35
    assert np.mean(sets.var_upper - sets.var_lower) < 0.18
    assert sets.count == 8000
    assert sets.clipped.max() == 0


def test_a_pilot_narrows_where_the_scale_was_guessed_badly():
    rng = np.random.default_rng(1)
    empty = moments(channels=1)
    pilot = empty.add(0.1 * rng.standard_normal((200, 1)))
    given = empty.add(0.1 * rng.standard_normal((200_000, 1)))
    wide, narrow = given.sets(0.05), given.sets(0.05, pilot=pilot)
    for sets, ratio in ((wide, 1.0), (narrow, 0.5)):
        width = sets.mean_upper - sets.mean_lower
        assert width <= ratio * (wide.mean_upper - wide.mean_lower)
        assert sets.contains(np.zeros(1), np.full(1, 0.01)).all()


def test_pixels_of_an_image_are_no_examples():
    one = np.random.default_rng(2).standard_normal((400, CHANNELS))
    flat = moments().add(one).sets(0.05)
    images = np.broadcast_to(one[:, :, None, None], (400, CHANNELS, 4, 4))
    same = moments().add(images).sets(0.05)
    for name in ("mean_lower", "mean_upper", "var_lower", "var_upper"):
        np.testing.assert_allclose(getattr(same, name), getattr(flat, name), atol=1e-9)
    assert same.count == 400


def test_variance_of_an_image_is_that_of_a_random_position():
    x = np.zeros((3000, 1, 2))
    x[:, 0, 0], x[:, 0, 1] = 1.0, -1.0  # every image has mean 0 and mean square 1
    sets = moments(channels=1).add(x).sets(0.05)
    assert sets.contains(np.zeros(1), np.ones(1)).all()
    assert not sets.contains(np.zeros(1), np.zeros(1)).any()


@given(st.lists(st.integers(0, 40), min_size=2, max_size=4), st.booleans())
def test_streams_merge(sizes, images):
    rng = np.random.default_rng(sum(sizes))
    shape = (2, 3, 3) if images else (2,)
    parts = [rng.standard_normal((n, *shape)) for n in (*sizes, 5)]
    merged = moments(channels=2)
    for part in parts:
        merged = merged.merge(moments(channels=2).add(part))
    whole = moments(channels=2).add(np.concatenate(parts))
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.second.sums, whole.second.sums, atol=1e-12)
    np.testing.assert_allclose(merged.sets(0.1).var_upper, whole.sets(0.1).var_upper, atol=1e-9)


def test_a_shift_and_a_stretch_go_through():
    x = np.random.default_rng(3).standard_normal((500, CHANNELS))
    plain = moments().add(x).sets(0.05)
    moved = moments(1000.0, 0.01).add(1000 + 0.01 * x).sets(0.05)
    np.testing.assert_allclose(moved.mean_lower, 1000 + 0.01 * plain.mean_lower, rtol=1e-9)
    np.testing.assert_allclose(moved.var_upper, 1e-4 * plain.var_upper, rtol=1e-6)


def test_sharing_delta_with_other_layers_widens():
    given = moments().add(np.random.default_rng(4).standard_normal((500, CHANNELS)))
    alone, among = given.sets(0.05), given.sets(0.05, channels=4096)
    assert np.all(among.mean_upper > alone.mean_upper)
    assert np.all(among.var_lower <= alone.var_lower)


def test_clipping_is_counted_and_bounds_what_an_outlier_does():
    x = np.zeros((100, 1))
    x[0] = 1e30
    given = moments(channels=1).add(x)
    sets = given.sets(0.5)
    assert sets.clipped[0] == 0.01
    assert sets.mean_upper[0] <= RANGE


def test_the_hull_holds_the_sealed_statistics():
    sets = moments().add(np.random.default_rng(5).standard_normal((500, CHANNELS))).sets(0.05)
    mean, var = np.full(CHANNELS, 3.0), np.full(CHANNELS, 1e-3)
    assert not sets.contains(mean, var).any()
    hull = sets.hull(mean, var)
    assert isinstance(hull, StatisticsSets)
    assert hull.contains(mean, var).all()
    assert hull.contains(np.zeros(CHANNELS), np.ones(CHANNELS)).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: moments(sd=0.0), "channel 0"),
        (lambda: moments(mean=np.nan), "channel 0"),
        (lambda: ChannelMoments.empty(np.zeros(2), np.ones(3)), "expected center and scale"),
        (lambda: moments().add(np.zeros((3, 4))), r"expected \(n, 8"),
        (lambda: moments().add(np.zeros(8)), r"expected \(n, 8"),
        (lambda: moments().add(np.zeros((2, 8, 0))), "positions"),
        (lambda: moments().add(np.full((2, 8), np.nan)), "finite values"),
        (lambda: moments().add(np.full((2, 8), np.inf)), "finite values"),
        (lambda: moments().add(np.zeros((2, 8, 3))).add(np.zeros((2, 8, 4))), "several sizes"),
        (lambda: moments().merge(moments(1.0)), "one center"),
        (
            lambda: moments().add(np.zeros((1, 8, 2))).merge(moments().add(np.zeros((1, 8)))),
            "number of positions",
        ),
        (lambda: moments().sets(0.05), "at least one example"),
        (lambda: moments().add(np.zeros((2, 8))).sets(0), "expected delta"),
        (lambda: moments().add(np.zeros((2, 8))).sets(0.05, channels=4), "channels >= 8"),
    ],
)
def test_what_cannot_be_certified_is_refused(call, says):
    with pytest.raises(CertificateError, match=says):
        call()

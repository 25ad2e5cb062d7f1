"""The recorder: NaN and infinity first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bnkit.lab.sketch import sketch, window_edges

HIDDEN = window_edges(1)


def of(values, kind="relu"):
    return sketch(np.asarray(values, dtype=np.float32), HIDDEN, step=0, kind=kind)


def test_nan_is_neither_zero_nor_in_a_bin():
    r = of([[np.nan, np.nan]])
    assert (r.nan, r.zero, r.dead, sum(r.counts)) == (2, None, 0, 0)
    assert r.zero_if_nan_is_zero == 1


def test_a_unit_with_one_nan_is_not_dead():
    assert of([[0.0, 0.0], [0.0, np.nan]]).dead == 0.5


def test_infinities_are_counted_apart_and_are_not_outside_the_window():
    r = of([[np.inf, -np.inf, np.nan, 5.0]])
    assert (r.posinf, r.neginf, r.nan) == (1, 1, 1)
    assert (r.nonfinite, r.outside) == (0.75, 0.25)
    assert (r.mean, r.sd) == (5, 0)


def test_saturated_is_a_share_of_finite_entries_of_tanh():
    values = [[1.0, -0.995, 0.5, np.nan]]
    assert of(values, "tanh").saturated == pytest.approx(2 / 3)
    assert of(values, "relu").saturated is None
    assert of(values, "tanh").dead is None
    assert of(values, "tanh").zero_if_nan_is_zero is None


def test_both_ends_of_the_window_are_inside():
    r = of([[-1.0, 1.0]])
    assert (r.counts[0], r.counts[-1], r.outside) == (1, 1, 0)


def test_windows_are_those_of_the_tutorial():
    assert (window_edges(0)[0], window_edges(0)[-1]) == (-7, 10)
    assert {len(window_edges(n)) for n in range(8)} == {16}
    assert HIDDEN[0] == -1
    assert HIDDEN[-1] == 1


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    )
)
def test_every_entry_is_accounted_for(values):
    r = of(values, "tanh")
    assert r.entries == values.size
    assert sum(r.counts) + round(r.outside * r.entries) + r.nan + r.posinf + r.neginf == r.entries
    assert (r.mean is None) == (r.nonfinite == 1)


def test_negative_values_are_counted_inside_and_outside_the_window():
    values = np.array([[-5.0, -0.0], [np.nan, -np.inf], [-1e-30, 3.0]])
    assert sketch(values, window_edges(1), step=0, kind="relu").negative == 2

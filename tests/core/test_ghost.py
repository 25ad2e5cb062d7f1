"""Dividing a batch into ghost batches, and what of them is averaged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit.core import InputError, SpecError, check_ghost, ghost_slices, ghost_statistics, moments
from tests.tolerances import FLOAT64

sizes = st.integers(1, 40)
orders = st.sampled_from(["contiguous", "strided"])


@given(sizes, sizes, orders, st.sampled_from(["smaller", "plain"]))
def test_the_groups_are_a_partition(samples, size, groups, remainder):
    found = ghost_slices(samples, size, groups=groups, remainder=remainder)
    parts = [list(range(samples))[s] for s in found]
    assert sorted(i for part in parts for i in part) == list(range(samples))
    assert all(parts)
    if samples % size and remainder == "plain":
        assert len(parts) == 1
    else:
        assert len(parts) == -(-samples // size)
        assert max(map(len, parts)) <= size
    if samples % size == 0:
        assert {len(p) for p in parts} == {size}
    if groups == "strided" and remainder == "smaller":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert [len(p) for p in parts] == sorted(map(len, parts), reverse=True)


def test_strided_groups_are_those_of_tensorflow():
    """TensorFlow reshapes to (size, G, ...) and reduces over the first axis."""
    x = np.arange(12)
    columns = x.reshape(4, 3).T.tolist()
    assert [x[s].tolist() for s in ghost_slices(12, 4, groups="strided")] == columns


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match=r"here: expected a batch that virtual_batch_size=4 div"):
        ghost_slices(6, 4, where="here")


@pytest.mark.parametrize("correction", [0, 1])
def test_what_is_averaged(space, correction):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 3)) * 2 + 5
    slices = ghost_slices(8, 3, remainder="smaller")
    groups = [moments(space(x[s]), (0,)) for s in slices]
    means = [x[s].mean(0) for s in slices]
    variances = [x[s].var(0, ddof=correction) for s in slices]
    expected = {
        "mean": [(np.mean(means, 0), np.mean(variances, 0))],
        "sequential": list(zip(means, variances, strict=True)),
        "total": [(x.mean(0), x.var(0, ddof=correction))],
    }
    for rule, pairs in expected.items():
        found = ghost_statistics(groups, rule, correction)
        assert len(found) == len(pairs)
        for got, wanted in zip(found, pairs, strict=True):
            for a, b in zip(got, wanted, strict=True):
                np.testing.assert_allclose(space.back(a), b, rtol=FLOAT64)


@pytest.mark.parametrize(
    ("size", "choices", "match"),
    [
        (0, {}, "integer of at least 1, got 0"),
        (2.0, {}, "integer of at least 1, got 2.0"),
        (True, {}, "integer of at least 1, got True"),
        (2, {"groups": "blocks"}, "groups to be one of 'contiguous', 'strided', got 'blocks'"),
        (2, {"running": "sum"}, "running to be one of 'mean', 'sequential', 'total'"),
        (2, {"remainder": "drop"}, "remainder to be one of 'error', 'smaller', 'plain'"),
    ],
)
def test_bad_choices(size, choices, match):
    with pytest.raises(SpecError, match=match):
        check_ghost("here", size, **choices)

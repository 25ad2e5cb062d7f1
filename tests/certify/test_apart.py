"""The ledger spends nothing twice; the bound set stays shut until a network is sealed."""

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bnkit.certify import BoundSet, Ledger, example_keys, refuse_overlap, split
from bnkit.core.errors import CertificateError


def test_a_ledger_adds_up():
    ledger = Ledger(0.05)
    parts = [ledger.spend(n, s) for n, s in (("a", 0.5), ("b", 0.3), ("c", 0.1), ("d", 0.1))]
    assert parts == pytest.approx([0.025, 0.015, 0.005, 0.005])
    assert ledger.rest == pytest.approx(0, abs=1e-15)
    assert [e.statement for e in ledger.entries] == ["a", "b", "c", "d"]
    document = json.loads(json.dumps(ledger.to_dict(), allow_nan=False))
    assert document["total"] == 0.05
    assert document["spent"] == pytest.approx(0.05)


@given(st.lists(st.floats(0.001, 1), max_size=30))
def test_a_ledger_never_spends_more_than_it_has(shares):
    ledger = Ledger(0.2)
    for i, share in enumerate(shares):
        before = ledger.rest
        try:
            delta = ledger.spend(str(i), share)
        except CertificateError:
            assert share * 0.2 > before
        else:
            assert delta == share * 0.2
        assert ledger.spent <= 0.2 * (1 + 1e-9)


def test_a_ledger_refuses():
    ledger = Ledger(0.1)
    ledger.spend("a", 0.9)
    for share in (0.2, 0, -1, 1.5, np.nan, True):
        with pytest.raises(CertificateError, match="expected"):
            ledger.spend("b", share)
    with pytest.raises(CertificateError, match="has been paid for"):
        ledger.spend("a", 0.05)
    assert ledger.spent == pytest.approx(0.09)
    for total in (0, 1, "x", None):
        with pytest.raises(CertificateError, match="expected total"):
            Ledger(total)


def test_a_bound_set_is_shut_until_a_seal():
    held = BoundSet([3, 1, 2])
    for touch in (list, np.asarray, sorted, lambda s: s[0], lambda s: [*s], np.sum):
        with pytest.raises(CertificateError, match="after sealing"):
            touch(held)
    for seal in ("", "  ", None, 7):
        with pytest.raises(CertificateError, match="Seal it first"):
            held.release(seal)
    assert held.seals == ()
    assert held.release("f00").tolist() == [3, 1, 2]
    assert held.release("f00").tolist() == [3, 1, 2]
    assert held.seals == ("f00",)
    with pytest.raises(ValueError, match="read-only"):
        held.release("f00")[0] = 9


def test_another_network_needs_fresh_examples_or_a_payment():
    held = BoundSet([1, 2], candidates=2)
    assert held.share(0.05) == 0.025
    held.release("one")
    held.release("two")
    with pytest.raises(CertificateError, match="one of the 2 announced"):
        held.release("three")
    assert held.release("one").tolist() == [1, 2]
    assert "released to 2" in repr(held)


@pytest.mark.parametrize("positions", [[], [[1, 2]], [1, 1]])
def test_bad_positions_are_refused(positions):
    with pytest.raises(CertificateError, match="expected"):
        BoundSet(positions)


@given(st.integers(2, 60), st.floats(0.2, 0.8), st.integers(0, 5))
def test_a_split_is_a_partition(n, share, seed):
    assume(0 < round(share * n) < n)
    parts = split(n, share, seed=seed)
    bound = parts.bound.release("seal")
    assert sorted([*parts.build, *bound]) == list(range(n))
    assert len(bound) == round(share * n)
    assert bound.tolist() == split(n, share, seed=seed).bound.release("s").tolist()


@given(st.lists(st.sampled_from("abcdef"), min_size=4, max_size=40), st.integers(0, 3))
def test_groups_are_not_torn_apart(groups, seed):
    assume(len(set(groups)) > 1)
    parts = split(len(groups), 0.5, seed=seed, groups=groups)
    bound = {groups[i] for i in parts.bound.release("seal")}
    assert bound.isdisjoint({groups[i] for i in parts.build})
    assert bound | {groups[i] for i in parts.build} == set(groups)


def test_a_split_does_not_depend_on_the_order_of_seeds():
    drawn = {tuple(split(20, 0.5, seed=s).build.tolist()) for s in range(10)}
    assert len(drawn) == 10


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((1, 0.5), {}), ((10, 0.0), {}), ((10, 1), {}), ((10, 0.01), {}), ((0, 0.5), {}),
     ((4, 0.5), {"groups": ["a"] * 4}), ((4, 0.5), {"groups": ["a"]})],
)  # fmt: skip
def test_splits_that_leave_nothing_are_refused(arguments, options):
    with pytest.raises(CertificateError, match="expected"):
        split(*arguments, seed=0, **options)


def test_copies_across_splits_are_found():
    x = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    keys = example_keys(x)
    assert len(set(keys)) == 6
    refuse_overlap(keys[:3], keys[3:])
    with pytest.raises(CertificateError, match=r"1 of 3 \(positions 2\)"):
        refuse_overlap(keys[:3], [keys[3], keys[4], keys[1]])
    assert example_keys(x.transpose(0, 2, 1).reshape(6, 2, 3)) != keys
    assert set(example_keys(x.astype(np.float64))).isdisjoint(keys)  # another encoding
    assert example_keys(x[::2]) == keys[::2]

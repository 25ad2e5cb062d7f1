"""Means, shares and verdicts, on measurements made up for the purpose."""

import pytest

from bnkit.bench.results import Check, Measurement, Missing, Step, Timing
from bnkit.bench.targets import mean_ratio, outcomes
from bnkit.bench.traffic import array_bytes, floor_bytes


def timing(provider, seconds):
    return Timing(provider, seconds, seconds, seconds, 5, 1)


def measurement(times, *, operator="bn", direction="forward", memory_format="contiguous", **more):
    sizes = more.pop("sizes", (32, 64, 56, 56))
    return Measurement(
        more.pop("network", "ResNet-50"),
        sizes,
        memory_format,
        operator,
        direction,
        array_bytes(sizes),
        floor_bytes(operator, direction, sizes),
        tuple(timing(name, seconds) for name, seconds in times.items()),
        **more,
    )


def found(what, against, measurements=(), steps=(), checks=()):
    rows = outcomes(list(measurements), list(steps), list(checks))
    return next(row for row in rows if row.what.startswith(what) and row.against == against)


def test_the_mean_of_ratios_is_geometric():
    pair = [measurement({"torch": 8.0, "bnkit": 1.0}), measurement({"torch": 2.0, "bnkit": 1.0})]
    assert mean_ratio(pair, "torch") == pytest.approx(4.0)
    assert mean_ratio(pair, "compile") is None


@pytest.mark.parametrize(("ratio", "passed"), [(6.0, True), (5.99, False)])
def test_a_target_is_reached_at_its_value(ratio, passed):
    row = found("forward, contiguous", "torch", [measurement({"torch": ratio, "bnkit": 1.0})])
    assert (row.measured, row.passed) == (pytest.approx(ratio), passed)


def test_no_shape_may_lie_below_the_floor():
    times = [{"torch": 9.0, "bnkit": 1.0}, {"torch": 0.99, "bnkit": 1.0}]
    both = [measurement(t, memory_format="channels_last") for t in times]
    row = found("forward, channels_last", "torch", both)
    assert row.measured > 2
    assert row.passed is False
    assert found("forward, channels_last", "torch", both[:1]).passed is True


def test_what_was_not_measured_has_no_verdict_but_a_reason():
    missing = (Missing("compile", "BackendCompilerFailed: no compiler"),)
    m = measurement({"torch": 9.0, "bnkit": 1.0}, missing=missing)
    row = found("forward, contiguous", "compile", [m])
    assert (row.measured, row.passed, row.note) == (None, None, missing[0].reason)
    assert found("backward, contiguous", "torch", [m]).passed is None


def test_other_directions_formats_and_the_tiny_input_are_not_averaged_in():
    wanted = measurement({"torch": 7.0, "bnkit": 1.0})
    others = [
        measurement({"torch": 1.0, "bnkit": 1.0}, direction="backward"),
        measurement({"torch": 1.0, "bnkit": 1.0}, memory_format="channels_last"),
        measurement({"torch": 1.0, "bnkit": 1.0}, operator="bn_relu"),
        measurement({"torch": 1.0, "bnkit": 1.0}, network="tiny", sizes=(32, 64)),
    ]
    assert found("forward, contiguous", "torch", [wanted, *others]).measured == pytest.approx(7.0)


def test_the_share_of_the_copy_takes_large_arrays_only():
    large = measurement({"torch": 9.0, "bnkit": 2.0, "copy": 1.0, "copy_new": 1.2})
    small = measurement({"torch": 9.0, "bnkit": 9.0, "copy": 1.0}, sizes=(16, 256, 14, 14))
    row = found("forward over 8 MB", "copy", [large, small])
    assert (row.measured, row.unit, row.passed) == (pytest.approx(50.0), "%", True)
    assert found("forward over 8 MB", "copy", [small]).measured is None
    assert found("forward over 8 MB", "new copy", [large]).measured == pytest.approx(60.0)


def test_the_ceiling_is_the_ratio_of_a_kernel_as_fast_as_a_copy():
    times = {"torch": 6.0, "bnkit": 2.0, "copy": 1.0}
    assert measurement(times).ceiling("torch") == pytest.approx(6.0)
    back = measurement(times, direction="backward")
    assert back.ceiling("torch") == pytest.approx(6.0 / 1.5)
    assert measurement({"bnkit": 1.0, "copy": 1.0}).ceiling("torch") is None
    row = found("forward, contiguous", "torch", [measurement(times)])
    assert row.note == "3.00 to 3.00 over 1; 6.0 at copy speed"


def test_the_overhead_is_the_time_of_bnkit_over_that_of_torch():
    tiny = measurement({"torch": 1.0, "bnkit": 1.3}, network="tiny", sizes=(32, 64))
    assert found("time of a forward", "torch", [tiny]).passed is True
    slow = measurement({"torch": 1.0, "bnkit": 1.31}, network="tiny", sizes=(32, 64))
    row = found("time of a forward", "torch", [slow])
    assert (row.measured, row.passed) == (pytest.approx(1.31), False)


def test_a_network_must_be_faster():
    times = (timing("torch", 1.0), timing("bnkit", 0.9), timing("bnkit_fused", 1.1))
    rows = outcomes([], [Step("ResNet-18", "contiguous", (1,), times)], [])
    verdicts = {row.what: row.passed for row in rows if row.what.startswith("ResNet-18")}
    assert verdicts == {
        "ResNet-18, contiguous, replace_": True,
        "ResNet-18, contiguous, fused": False,
    }


def test_accuracy_counts_what_only_the_bound_lets_through():
    good = Check((1,), "contiguous", "bn", 0.0, "y", error=1e-7, torch=1e-7, bound=1e-6)
    by_bound = Check((1,), "contiguous", "bn", 0.0, "y", error=5e-7, torch=1e-7, bound=1e-6)
    assert found("largest error", "torch", checks=[good]).passed is True
    row = found("largest error", "torch", checks=[good, by_bound])
    assert (row.measured, row.passed) == (pytest.approx(5.0), False)
    assert "1 of 2 above 2" in row.note


def test_bnkit_under_compile_is_judged_where_it_was_run():
    m = measurement({"torch": 1.0, "bnkit": 1.0, "compile": 3.0, "bnkit_compile": 2.0})
    assert found("bnkit under compile", "compile", [m]).measured == pytest.approx(1.5)

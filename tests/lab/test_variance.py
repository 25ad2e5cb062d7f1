"""The correction of the variance as an experiment: pairs that differ in nothing else."""

import pytest

from bnkit.cli.app import app
from bnkit.lab.plain import rebuild
from bnkit.lab.variance import SEEDS, VarianceConfig, VarianceResult, effect, run_variance


def test_without_a_correction_both_arms_are_the_same():
    found = run_variance(VarianceConfig(batch=100, epochs=1, correction=0))
    assert found.plain == found.corrected
    assert len(found.plain.error) == SEEDS
    assert found.error.verdict == found.cross_entropy.verdict == "no difference seen"
    assert found.error.mean == 0


def test_a_correction_changes_the_networks_and_little_of_the_error():
    seen = []
    config = VarianceConfig(batch=20, epochs=1)
    found = run_variance(config, progress=lambda *a: seen.append(a))
    pairs = zip(found.plain.cross_entropy, found.corrected.cross_entropy, strict=True)
    assert all(a != b for a, b in pairs)
    assert all(e < 0.5 for e in (*found.plain.error, *found.corrected.error))
    assert abs(found.error.mean) < 0.05
    assert found.cross_entropy.low < found.cross_entropy.mean < found.cross_entropy.high
    assert seen[-1][1:3] == (SEEDS, SEEDS)
    assert rebuild(VarianceResult, found.to_dict()) == found


def test_the_interval_is_students():
    """Differences 1..8: mean 4.5, deviation 2.449, half width 2.365 * 2.449 / sqrt(8)."""
    found = effect((0.0,) * 8, tuple(range(1, 9)))
    assert (found.mean, found.verdict) == (4.5, "higher")
    assert found.high - found.mean == pytest.approx(2.365 * 6**0.5 / 8**0.5)
    assert effect((0.0,) * 8, (1.0, -1.0) * 4).verdict == "no difference seen"


def test_the_command(capsys):
    app(["lab", "variance", "--batch", "200"], result_action="return_value")
    out = capsys.readouterr().out
    assert "Batches of 200, 8 pairs" in out
    assert out.count("95 %") == 2

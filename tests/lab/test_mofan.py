"""Seed 003: what lab.md measured must come out again, and NaN must never look like zero."""

import numpy as np
import pytest
import torch

from bnkit.core import InputError
from bnkit.lab.data import parabola
from bnkit.lab.mofan import ARMS, train
from bnkit.lab.network import MofanConfig, draw_weights
from tests.lab.reference import cost_after_one_step

UNIT = 1 / 30  # one unit of a layer
FINITE_ARMS = [arm for arm in ARMS if arm != ("relu", False)]


def shares(run, name, record):
    return [getattr(layer.records[record], name) for layer in run.layers[1:]]


def final(run):
    assert run.cost.state[-1] == "finite"
    return run.cost.values[-1]


def float64_costs(activation, batch_norm):
    config, data = MofanConfig(), parabola()
    weights = [w.double().numpy() for w in draw_weights(config, config.seed)]
    return cost_after_one_step(data.x, data.y, weights, activation, batch_norm=batch_norm)


@pytest.mark.parametrize(("activation", "batch_norm"), FINITE_ARMS)
def test_first_recorded_cost_is_that_of_an_independent_float64_implementation(
    runs, activation, batch_norm
):
    before, after = float64_costs(activation, batch_norm)
    measured = runs[activation, batch_norm].cost.values[0]
    assert measured == pytest.approx(after, rel=1e-4)
    assert abs(before - after) > 0.01 * after, "the step must matter, or this test shows nothing"


def test_relu_without_batch_norm_overflows_float32_and_does_not_die(runs):
    _, after = float64_costs("relu", False)
    assert float(np.finfo(np.float32).max) < after < np.inf
    assert runs["relu", False].cost.state[0] == "inf"


def test_relu_without_batch_norm_is_not_finite_from_step_5_on(runs):
    cost = runs["relu", False].cost
    assert cost.steps[:2] == (0, 5)
    assert set(cost.state[1:]) == {"nan"}
    assert cost.values == (None,) * 51


def test_final_costs_lie_in_the_measured_bands(runs):
    assert 54 < final(runs["relu", True]) < 63
    assert 75 < final(runs["tanh", True]) < 90
    # 50 seeds: 362 to 797
    assert 300 < final(runs["tanh", False]) < 900


def test_first_costs_are_those_of_the_seed_1_table(runs):
    first = {arm: runs[arm].cost.values[0] for arm in FINITE_ARMS}
    assert first["relu", True] == pytest.approx(999, abs=1)
    assert first["tanh", False] == pytest.approx(1307, abs=1)
    assert first["tanh", True] == pytest.approx(1220, abs=1)


def test_untrained_relu_layers_are_those_of_the_seed_1_table(runs):
    plain, normal = runs["relu", False], runs["relu", True]
    expected = [0, 0.10, 0.23, 0.17, 0.37, 0.30, 0.43]
    assert shares(plain, "dead", 0) == pytest.approx(expected, abs=0.006)
    expected = [0.51, 0.48, 0.49, 0.46, 0.49, 0.55, 0.59]
    assert shares(plain, "zero", 0) == pytest.approx(expected, abs=0.006)
    assert shares(plain, "sd", 0)[-1] == pytest.approx(6960, rel=0.01)
    assert all(0.28 < s < 0.55 for s in shares(plain, "outside", 0))
    assert shares(normal, "dead", 0) == [0] * 7
    expected = [0.50, 0.52, 0.49, 0.52, 0.51, 0.49, 0.49]
    assert shares(normal, "zero", 0) == pytest.approx(expected, abs=0.006)


def test_untrained_tanh_layers_are_those_of_the_seed_1_table(runs):
    expected = [0.39, 0.49, 0.62, 0.50, 0.59, 0.57, 0.60]
    assert shares(runs["tanh", False], "saturated", 0) == pytest.approx(expected, abs=0.006)
    assert shares(runs["tanh", True], "saturated", 0) == pytest.approx([0] * 7, abs=0.006)


@pytest.mark.parametrize("record", range(1, 6))
def test_relu_without_batch_norm_is_nan_everywhere_and_never_zero(runs, record):
    for layer in runs["relu", False].layers[1:]:
        r = layer.records[record]
        assert r.nan == r.entries == 500 * 30
        assert (r.nonfinite, r.outside, sum(r.counts)) == (1, 0, 0)
        assert (r.zero, r.mean, r.sd, r.saturated) == (None,) * 4
        assert r.dead == 0
        assert r.zero_if_nan_is_zero == 1, "what TensorFlow's fused relu shows"


@pytest.mark.parametrize("record", range(1, 6))
def test_relu_with_batch_norm_stays_alive(runs, record):
    run = runs["relu", True]
    assert shares(run, "nonfinite", record) == [0] * 7
    assert max(shares(run, "dead", record)) <= 2 * UNIT
    assert all(0.4 < z < 0.65 for z in shares(run, "zero", record))


@pytest.mark.parametrize("record", range(1, 6))
def test_tanh_saturates_without_batch_norm_only_and_not_completely(runs, record):
    plain = shares(runs["tanh", False], "saturated", record)
    normal = shares(runs["tanh", True], "saturated", record)
    assert 0.45 < np.mean(plain) < 0.95
    assert max(plain) < 1
    assert max(normal[1:]) < 0.2
    assert np.mean(normal) < 0.2 * np.mean(plain)


def test_the_first_panel_is_the_input_after_its_own_batch_norm(runs):
    raw = runs["tanh", False].layers[0].records
    normal = runs["tanh", True].layers[0].records[0]
    assert runs["tanh", False].layers[0].edges[0] == -7
    assert runs["tanh", False].layers[0].edges[-1] == 10
    assert {r.counts for r in raw} == {raw[0].counts}, "the data does not change"
    assert raw[0].mean == pytest.approx(1.5)
    assert normal.mean == pytest.approx(0, abs=1e-4)
    assert normal.sd == pytest.approx(1, abs=1e-3)
    assert runs["tanh", True].layers[0].records[-1].sd != normal.sd, "its scale is trained"


def test_every_entry_is_counted_once(runs):
    for run in runs.values():
        for layer in run.layers:
            for r in layer.records:
                shown = sum(r.counts) / r.entries
                assert shown + r.outside + r.nonfinite == pytest.approx(1)
                assert r.nan + r.posinf + r.neginf == round(r.nonfinite * r.entries)


def test_layout_of_the_record(mofan):
    assert mofan.record_steps == (0, 50, 100, 150, 200, 250)
    for run in mofan.runs:
        assert [layer.layer for layer in run.layers] == list(range(8))
        assert run.cost.steps == tuple(range(0, 251, 5))
        assert all(len(layer.edges) == 16 for layer in run.layers)
        assert all(
            tuple(r.step for r in layer.records) == mofan.record_steps for layer in run.layers
        )
    assert mofan.reference.best_constant == pytest.approx(737.7, abs=0.1)
    assert mofan.reference.predict_zero == pytest.approx(1215, abs=1)
    assert mofan.reference.noise_variance == pytest.approx(62.7, abs=0.1)


def test_the_same_seed_gives_the_same_numbers_whatever_was_drawn_before():
    config = MofanConfig(steps=12, record_every=5)
    first = train(config, "tanh", batch_norm=True)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  the global generators must not matter
    assert train(config, "tanh", batch_norm=True) == first
    other = train(MofanConfig(steps=12, record_every=5, seed=2), "tanh", batch_norm=True)
    assert other.cost.values != first.cost.values
    assert other.layers[0].records[0] == first.layers[0].records[0], "the data stays"


def test_threads_of_torch_are_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(MofanConfig(steps=6, record_every=5), "relu", batch_norm=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_that_records_no_trained_network_is_refused():
    with pytest.raises(InputError, match=r"steps must be more than record_every = 50, .* got 50"):
        MofanConfig(steps=50)

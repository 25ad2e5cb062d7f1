"""Networks trained side by side are those trained alone; lost ones are counted."""

from math import isnan
from statistics import median

import pytest
import torch

from bnkit.lab.ablation import LRS, ROWS, final_costs, run_ablation
from bnkit.lab.mofan import train
from bnkit.lab.network import MofanConfig, Networks, draw_weights
from bnkit.lab.store import Parts

SHORT = MofanConfig(steps=11, record_every=5)
BRIEF = MofanConfig(steps=3, record_every=1, cost_every=1)  # before rounding errors have grown


@pytest.mark.parametrize("batch_norm", [False, True])
def test_side_by_side_is_the_same_as_alone(batch_norm):
    together = final_costs(BRIEF, ("tanh", "normal", batch_norm), (1, 2), (1e-4, 1e-3))
    alone = train(BRIEF, "tanh", batch_norm=batch_norm).cost.values[-1]
    assert together[1] == pytest.approx(alone, rel=1e-4)
    assert len(set(together)) == 4


def test_a_lost_network_does_not_disturb_the_others():
    row, steps = ("tanh", "xavier", True), 21  # it is dropped after step 10
    config = MofanConfig(steps=steps, record_every=5)
    mixed = final_costs(config, row, (1,), (1e-5, 1e30))
    assert isnan(mixed[1])
    # beside a network that stays: products of another shape would add other rounding errors
    kept = final_costs(config, row, (1,), (1e-5, 2e-5))
    assert mixed[0] == pytest.approx(kept[0], rel=1e-5)


def test_all_networks_lost():
    costs = final_costs(SHORT, ("relu", "normal", False), (1, 2), (1e-3,))
    assert all(isnan(c) for c in costs)


def test_lost_means_a_parameter_that_is_not_finite():
    weights = [draw_weights(SHORT, seed) for seed in (1, 2, 3)]
    weights[1][3][0, 0] = torch.inf
    nets = Networks(SHORT, weights, "relu", batch_norm=True)
    assert nets.lost().tolist() == [False, True, False]
    nets.keep(~nets.lost())
    assert [p.shape[0] for p in nets.parameters()] == [2] * len(nets.parameters())
    assert torch.equal(nets.parameters()[0][1], weights[2][0])


def test_scales_of_the_initializations():
    wide = MofanConfig(units=400, hidden_layers=2)
    sds = {init: draw_weights(wide, 1, init)[1].std().item() for init in ("normal", "he", "xavier")}
    expected = {"normal": 1, "he": (2 / 400) ** 0.5, "xavier": (2 / 800) ** 0.5}
    assert sds == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("activation", "low", "high"), [("relu", 54, 63), ("tanh", 75, 90)])
def test_batch_norm_at_the_tutorials_rate_over_seeds(activation, low, high):
    costs = final_costs(MofanConfig(), (activation, "normal", True), (1, 2, 3), (1e-3,))
    assert low < median(costs) < high


def test_rows_and_cells():
    seen = []

    def progress(*event):
        seen.append(event[:3])

    parts = Parts()
    ablation = run_ablation(SHORT, profile="quick", parts=parts, progress=progress)
    assert [(r.activation, r.init, r.batch_norm) for r in ablation.rows] == list(ROWS)
    assert (ablation.seeds, ablation.lrs, parts.computed) == (3, LRS, len(ROWS))
    for row in ablation.rows:
        assert [cell.lr for cell in row.cells] == list(LRS)
        for cell in row.cells:
            assert cell.runs == 3
            assert (cell.median is None) == (cell.nonfinite >= 2)
    plain = ablation.rows[0]
    assert [c.nonfinite for c in plain.cells] == [3] * 5, "relu N(0,1) without BN: lost at any rate"
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("ablation", seen[-1][2], seen[-1][2])

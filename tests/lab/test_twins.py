"""The twins differ in batch norm only, and judging them changes nothing."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from bnkit.lab.data import Part, digits
from bnkit.lab.modes import (
    EMA_WEIGHTS,
    TRAIN_SIZES,
    judge_modes,
    left_in_train,
    population_of,
    replayed,
    summarize,
    with_statistics,
)
from bnkit.lab.twins import (
    TwinConfig,
    accuracy,
    batch_norms,
    build,
    listening,
    share_right,
    train,
)
from bnkit.nn import BatchNorm2d

CONFIG = TwinConfig()
SHORT = TwinConfig(steps=40, record_every=20)


@pytest.fixture(scope="module")
def split():
    return digits()


@pytest.fixture(scope="module")
def trained(split):
    return train(CONFIG, split, "bn", seed=1, lr=1.0)


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_twins_start_from_the_same_weights_and_have_our_layers():
    bn, plain = (build(CONFIG.channels, batch_norm=on, seed=3) for on in (True, False))
    weights = {
        kind: [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        for kind, model in (("bn", bn), ("plain", plain))
    }
    assert len(weights["bn"]) == 5
    for a, b in zip(weights["bn"], weights["plain"], strict=True):
        assert torch.equal(a, b)
    assert [type(m) for m in batch_norms(bn).values()] == [BatchNorm2d] * 4
    assert batch_norms(plain) == {}
    other = build(CONFIG.channels, batch_norm=False, seed=4)
    assert not torch.equal(weights["plain"][0], next(other.parameters()))


def test_the_same_seed_trains_the_same_network(split):
    first, second = (train(SHORT, split, "bn", seed=5, lr=0.3) for _ in range(2))
    assert first.run == second.run
    assert train(SHORT, split, "bn", seed=6, lr=0.3).run != first.run


def test_batch_norm_learns_where_its_twin_does_not(split, trained):
    plain = train(CONFIG, split, "plain", seed=1, lr=1.0)
    assert trained.run.test_accuracy > 0.95
    assert plain.run.test_accuracy < 0.5


def test_ways_of_judging_lie_in_their_bands(split, trained):
    found = judge_modes(trained, split).accuracy
    assert list(found) == [
        "eval",
        *(f"train-{n}" for n in TRAIN_SIZES),
        "never-updated",
        *(f"ema-{w:g}" for w in EMA_WEIGHTS),
        "population",
    ]
    assert found["eval"] > 0.95
    assert found["train-1"] < 0.4
    assert found["train-1"] < found["train-4"] < found["train-32"] + 0.02
    assert found["train-32"] > 0.93
    assert found["never-updated"] < 0.6
    assert found["ema-0.001"] < 0.7
    assert found["population"] == pytest.approx(found["eval"], abs=0.03)


def test_judging_does_not_change_the_network(split, trained):
    before, mode = snapshot(trained.model), trained.model.training
    judge_modes(trained, split)
    assert unchanged(trained.model, before)
    assert trained.model.training == mode
    assert not any(m._forward_pre_hooks for m in trained.model.modules())


def test_the_replay_with_the_layers_own_weight_is_the_layers_own_average(trained):
    for name, layer in batch_norms(trained.model).items():
        assert len(trained.seen[name]) == CONFIG.steps
        stats = replayed(trained.seen[name], 0.1)
        torch.testing.assert_close(stats.mean, layer.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stats.var, layer.running_var, rtol=1e-4, atol=1e-6)


def test_statistics_that_were_never_updated_are_0_and_1(trained):
    copy = with_statistics(trained.model, {})
    for layer in batch_norms(copy).values():
        assert layer.running_mean.eq(0).all()
        assert layer.running_var.eq(1).all()
    assert not batch_norms(trained.model)["features.1"].running_mean.eq(0).all()


def test_population_of_the_first_layer_is_that_of_all_images_at_once(split, trained):
    first = trained.model.get_submodule("features.0")
    with torch.no_grad():
        values = first(split.train.images).double()
    found = population_of(trained.model, split.train)["features.1"]
    assert found.count == 1000 * 64
    torch.testing.assert_close(found.mean.double(), values.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    var = values.var((0, 2, 3), correction=0)
    torch.testing.assert_close(found.var().double(), var, rtol=1e-4, atol=1e-6)


def test_accuracy_puts_the_mode_back_even_after_an_error(split):
    model = build(CONFIG.channels, batch_norm=True, seed=0).train()
    accuracy(model, Part(split.val.images[:20], split.val.labels[:20]))
    assert model.training
    with pytest.raises(RuntimeError):
        accuracy(model, Part(torch.zeros(2, 3, 8, 8), split.val.labels[:2]))
    assert model.training


def test_hooks_are_removed_after_an_error():
    model = build(CONFIG.channels, batch_norm=True, seed=0)
    with pytest.raises(RuntimeError), listening(model):
        model(torch.zeros(2, 3, 8, 8))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_only_training_is_listened_to(split):
    model = build(CONFIG.channels, batch_norm=True, seed=0)
    with listening(model) as seen:
        model.eval()(split.val.images[:4])
        model.train()(split.val.images[:4])
    assert {name: len(parts) for name, parts in seen.items()} == dict.fromkeys(seen, 1)
    assert len(seen) == 4


def test_a_row_that_is_not_finite_is_wrong():
    logits = torch.tensor([[torch.nan, 1.0], [2.0, 1.0], [torch.inf, 0.0]])
    assert share_right(logits, torch.tensor([0, 0, 0])) == pytest.approx(1 / 3)


def test_a_rest_smaller_than_the_batch_is_left_out(split):
    model = build(CONFIG.channels, batch_norm=True, seed=0)
    seven = Part(split.val.images[:7], split.val.labels[:7])
    six = Part(split.val.images[:6], split.val.labels[:6])
    assert left_in_train(model, seven, 3) == left_in_train(model, six, 3)


def test_a_diverging_network_has_no_loss_and_gets_nothing_right(split):
    run = train(SHORT, split, "plain", seed=1, lr=1e6).run
    assert run.train_loss[-1] is None
    assert run.test_accuracy == 0
    assert run.val_accuracy[-1] == 0


def test_the_gap_of_a_layer_is_its_worst_channel_and_seed(trained, split):
    one = judge_modes(trained, split)
    layer = one.layers[0]
    halved = replace(one, layers=(replace(layer, ratio_var=0.4, distance_mean_z=0.1),))
    doubled = replace(one, layers=(replace(layer, ratio_var=2.0, distance_mean_z=0.9),))
    gap = summarize((doubled, halved))[1][0]
    assert (gap.ratio_var, gap.distance_mean_z) == (0.4, 0.9)
    name, norm = next(iter(batch_norms(trained.model).items()))
    whole = population_of(trained.model, split.train)[name]
    logs = (norm.running_var / whole.var(correction=1)).log()
    assert abs(math.log(layer.ratio_var)) == pytest.approx(logs.abs().max().item(), rel=1e-5)


def test_summary_over_seeds(split, trained):
    one = judge_modes(trained, split)
    mode, layers = summarize((one, one))
    assert [row.id for row in mode.rows] == list(one.accuracy)
    assert {row.runs for row in mode.rows} == {2}
    assert {row.sd for row in mode.rows} == {0}
    assert layers == one.layers
    assert all(0.5 < gap.ratio_var < 2 and gap.distance_mean_z < 1 for gap in layers)

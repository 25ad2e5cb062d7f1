"""Second forward passes that leave no trace, and the table that says what updates when."""

import copy

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import bnkit
from bnkit.core import PolicyError
from tests.nn.family import EAGER, LAYERS, assert_state, batch, make, norms, state


def step(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    layer.zero_grad()
    y.pow(3).sum().backward()
    return [y, x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("how", ["while", "switch"])
def test_everything_as_ever_but_the_statistics(name, how):
    layer, x = make(name), batch(name)
    expected = step(copy.deepcopy(layer), x)
    before, twin = state(layer), copy.deepcopy(layer)
    if how == "while":
        with bnkit.nn.no_update(layer):
            got = step(layer, x)
    else:
        assert bnkit.nn.set_policy_(layer, update="never") == tuple(norms(layer))
        got = step(layer, x)
        assert_state(layer, before)
        bnkit.nn.set_policy_(layer, update="forward")
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert_state(layer, before)
    layer(x), twin(x)
    assert_state(layer, state(twin))
    assert not any("_policy" in norm.__dict__ for norm in norms(layer).values())


@pytest.mark.parametrize("name", LAYERS)
def test_eval_mode_is_what_it_was(name):
    layer, x = make(name), batch(name)
    layer(x)
    layer.eval()
    expected = layer(x)
    with bnkit.nn.no_update(layer):
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("theirs", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_torchs_own_layers_obey(theirs):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), theirs(4))
    x = torch.randn(4, 3, 6, 6)
    if theirs is nn.SyncBatchNorm:
        model[1].eval()  # its training needs a GPU
    else:
        model(x)
    before, expected = state(model), copy.deepcopy(model)(x)

    def breaks():
        with bnkit.nn.no_update(model):
            assert torch.equal(model(x), expected)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    assert_state(model, before)
    assert model[1].track_running_stats


def test_the_second_step_of_sam():
    """Foret et al. 2021: gradient at the worst point nearby, on the same batch."""

    def train(around_the_second):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), bnkit.nn.BatchNorm1d(4), nn.Tanh())
        reference = bnkit.nn.BatchNorm1d(4)
        for _ in range(3):
            x = torch.randn(8, 3)
            reference(model[0](x).detach())
            model(x).pow(2).mean().backward()
            with torch.no_grad():
                ascent = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in model.parameters()]
                for p, e in zip(model.parameters(), ascent, strict=True):
                    p += e
            model.zero_grad()
            with around_the_second(model):
                model(x).pow(2).mean().backward()
            with torch.no_grad():
                for p, e in zip(model.parameters(), ascent, strict=True):
                    p -= e + 0.1 * p.grad
            model.zero_grad()
        return model[1], reference

    layer, reference = train(bnkit.nn.no_update)
    for a, b in zip(layer.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    twice, _ = train(lambda _: torch.enable_grad())
    assert int(twice.num_batches_tracked) == 6


def test_nested_and_with_frozen():
    layer = make("BatchNorm1d")
    x = batch("BatchNorm1d")
    before = state(layer)
    with bnkit.nn.no_update(layer):
        with bnkit.nn.no_update(layer), bnkit.nn.frozen(layer):
            layer(x)
        assert layer.training
        layer(x)
    assert_state(layer, before)
    layer(x)
    assert int(layer.num_batches_tracked) == 4


def test_cumulative_average_and_nonfinite_batches():
    layer = bnkit.nn.BatchNorm1d(4, momentum=None)
    with bnkit.nn.no_update(layer):
        layer(torch.full((6, 4), float("inf")))  # a warning would be an error
        layer(torch.randn(6, 4))
    assert int(layer.nonfinite_batches) == 0
    x = torch.randn(6, 4)
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0))


def test_compiled():
    torch._dynamo.reset()
    layer, x = make("BatchNorm2d"), batch("BatchNorm2d")
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = run(x)
    before = state(layer)
    with bnkit.nn.no_update(layer):
        torch.testing.assert_close(run(x), expected)
    assert_state(layer, before)
    run(x)
    assert int(layer.num_batches_tracked) == 5


def test_lazy_layers_are_born_silent():
    model = nn.Sequential(bnkit.nn.LazyBatchNorm1d())
    with bnkit.nn.no_update(model):
        model(torch.randn(6, 4))
    assert torch.equal(model[0].running_mean, torch.zeros(4))
    model(torch.randn(6, 4))
    assert int(model[0].num_batches_tracked) == 1
    theirs = nn.Sequential(nn.LazyBatchNorm1d())
    with (
        pytest.raises(PolicyError, match=r"got '0' \(LazyBatchNorm1d\)"),
        bnkit.nn.no_update(theirs),
    ):
        pytest.fail("entered")


def test_what_is_refused():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    with pytest.raises(PolicyError, match=r"'1' \(BatchNorm1d\) which counts every forward pass"):
        bnkit.nn.set_policy_(model, update="never")
    assert model[0].statistics_policy == bnkit.nn.StatisticsPolicy()
    with pytest.raises(PolicyError, match=r"update must be one of .* got 'sometimes'"):
        bnkit.nn.set_policy_(model[0], update="sometimes")
    with pytest.raises(PolicyError, match="needs somebody who commits"):
        bnkit.nn.set_policy_(model[0], update="commit")
    with pytest.raises(PolicyError, match=r"no_update: expected a torch.nn.Module, got str"):
        bnkit.nn.no_update("model").__enter__()


def test_the_table_says_what_happens():
    torch.manual_seed(0)
    model = nn.Sequential(
        bnkit.nn.BatchNorm1d(4),
        bnkit.nn.BatchNormAct1d(4, on_nonfinite="raise"),
        nn.BatchNorm1d(4, affine=False),
        bnkit.nn.BatchNorm1d(4, track_running_stats=False),
        bnkit.nn.LazyBatchNorm1d(),
    )
    bnkit.nn.freeze_(model[0], affine=True)
    bnkit.nn.set_policy_(model[1], update="never")
    model[1].bias.requires_grad_(requires_grad=False)
    table = bnkit.nn.policy(model)
    assert [row.name for row in table] == ["0", "1", "2", "3", "4"]
    assert [row.normalizes_with for row in table] == ["running (frozen)", *["batch"] * 4]
    wanted = ["never", "never", "each forward pass", "never", "each forward pass"]
    assert [row.updates for row in table] == wanted
    assert [row.recomputation for row in table] == ["-", "-", "counts again", "-", "counts once"]
    assert [row.nonfinite for row in table] == ["skip", "raise", "propagate", "skip", "skip"]
    affine = ["frozen", "partly frozen", "none", "trained", "trained"]
    assert [row.affine for row in table] == affine
    assert [row.batches for row in table] == [0, 0, 0, None, 0]
    assert table["1"].policy.update == "never"
    assert table["2"].policy is None
    before = {row.name: row.updates for row in table}
    buffers = [b.clone() for b in model[:4].buffers()]
    model[:4](torch.randn(6, 4))
    changed = [not torch.equal(a, b) for a, b in zip(buffers, model[:4].buffers(), strict=True)]
    assert changed == [w != "never" for w in list(before.values())[:3] for _ in range(3)]
    with bnkit.nn.rollback(model):
        assert bnkit.nn.policy(model)["4"].updates == "when committed"
        assert bnkit.nn.policy(model)["1"].updates == "never"
    assert [row.updates for row in bnkit.nn.policy(model.eval())] == ["never"] * 5
    assert bnkit.nn.policy(model)["2"].normalizes_with == "running"
    with pytest.raises(KeyError):
        table["5"]


def test_the_table_prints():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    lines = str(bnkit.nn.policy(model)).splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:3] == ["layer", "class", "mode"]
    assert lines[1].split() == [
        *["0", "BatchNorm1d", "train", "batch", "each", "forward", "pass"],
        *["counts", "once", "skip", "trained", "0"],
    ]
    assert bnkit.nn.policy(model).to_dict()[1]["recomputation"] == "counts again"
    assert str(bnkit.nn.policy(nn.Linear(2, 2))) == "no batch norm"
    assert len(bnkit.nn.policy(model)) == 2


def test_the_first_batch_of_a_lazy_layer_is_ours():
    """Module.__call__ looks forward up before the lazy layer becomes another."""
    layer = bnkit.nn.LazyBatchNorm1d()
    with pytest.warns(bnkit.core.NonFiniteWarning):
        layer(torch.full((6, 4), float("inf")))
    assert int(layer.num_batches_tracked) == 0
    assert layer.running_mean.eq(0).all()


def test_coming_and_going_does_not_compile_again_and_again():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layer = make("BatchNorm2d")
    run = torch.compile(layer, fullgraph=True, backend=counter)
    for _ in range(3):
        for around in (bnkit.nn.no_update, bnkit.nn.rollback, bnkit.nn.frozen):
            run(batch("BatchNorm2d"))
            with around(layer):
                run(batch("BatchNorm2d"))
    assert counter.frame_count == 4  # the plain one, and one for each

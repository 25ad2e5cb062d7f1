"""Every layer under every function that takes a whole model: obeyed, or refused with a reason."""

import copy
import re

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import ConversionError, InputError
from bnkit.nn.replacing.convert_sync import convert_sync_batchnorm, revert_sync_batchnorm
from tests.nn.family import EAGER, LAYERS, assert_state, batch, make, norms, state

each = pytest.mark.parametrize("name", EAGER)
# the beginning of a name -> why the batch of such a layer is no part of a larger one
ALONE = {
    "Whitened": "covariance is that of the batch of one process",
    "GhostBatchNorm": "its groups are parts of the batch of one process",
    "BatchRenorm": "r and d compare the batch of one process",
    "DifferentiableBatchNorm": "its live statistics are functions of the batch of one process",
    "BatchNorm two": "put layer.plain",
    "BatchNorm renorm": "put layer.plain",
    "BatchNorm adjusted": "put layer.plain",
}


def reason(name, table, exact=()):
    """Why a layer is refused, or None."""
    found = [why for start, why in table.items() if name.startswith(start)]
    return exact[name] if name in exact else found[0] if found else None


def alone(name):
    return reason(name, ALONE, {"BatchNorm": "put layer.plain"})


def parts(name, seed=0):
    """One batch, and the micro-batches that are its groups of two samples."""
    x = batch(name, seed)
    strided = "strided" in name or name == "BatchNorm renorm ghost"
    groups = len(x) // 2
    return x, [x[g::groups] for g in range(groups)] if strided else x.split(2)


def assert_close_state(layer, expected, tolerance=2e-5):
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(
            value, expected[key], rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}"
        )


@each
def test_synchronized_or_refused(name):
    model = nn.Sequential(make(name))
    before, shown, why = state(model), repr(model), alone(name)
    if why is None:
        expected = copy.deepcopy(model)(batch(name))
        convert_sync_batchnorm(model)
        assert all("synchronized=True" in repr(norm) for norm in norms(model).values())
        assert torch.equal(model(batch(name)), expected)
        revert_sync_batchnorm(model)
        assert ("synchronized" in repr(model)) is (name == "SyncBatchNorm")
        return
    with pytest.raises(ConversionError, match=rf"'0' \({type(model[0]).__name__}\): .*{why}"):
        convert_sync_batchnorm(model)
    assert repr(model) == shown
    assert_state(model, before)


@each
def test_one_update_for_all_micro_batches(name):
    layer = make(name)
    if name.startswith(("Differentiable", "Whitened")):
        why = "whitening matrix" if "White" in name else "live statistics are those of the last"
        with (
            pytest.raises(ConversionError, match=why),
            bnkit.nn.accumulate(layer),
        ):
            pass
        layer.eval()
        with bnkit.nn.accumulate(layer):
            layer(batch(name))
        return
    before, twin = state(layer), copy.deepcopy(layer)
    whole, micro_batches = parts(name)
    alike = len(whole) // 2 * [None]
    with bnkit.nn.accumulate(layer):
        for i, part in enumerate(micro_batches):
            alike[i] = torch.equal(layer(part), copy.deepcopy(twin)(part))
        assert_state(layer, before)
    assert all(alike), "outputs are those of the micro-batches"
    twin(whole)  # its groups are the micro-batches
    assert_close_state(layer, state(twin))
    assert not any("_part" in norm.__dict__ and name != "SyncBatchNorm" for norm in
                   norms(layer).values())  # fmt: skip


@pytest.mark.parametrize("name", ["GhostBatchNorm2d", "BatchRenorm2d", "BatchNorm"])
def test_a_bad_micro_batch_is_left_out_alone(name):
    layer = make(name)
    twin = copy.deepcopy(layer)
    x = batch(name)
    with bnkit.nn.accumulate(layer):
        with pytest.warns(bnkit.core.NonFiniteWarning):
            layer(x[:2] * float("inf"))
        layer(x[2:])
    twin(x[2:])
    assert_close_state(layer, state(twin))
    assert int(layer.nonfinite_batches) == 1


@each
def test_the_one_big_batch_or_refused(name):
    model = nn.Sequential(make(name))
    whole, micro_batches = parts(name)
    twin, why = copy.deepcopy(model), alone(name)

    def loss(m, x):
        return m(x).pow(3).sum()

    if why is not None:
        with pytest.raises(ConversionError, match=f"{type(model[0]).__name__}.*{why}"):
            bnkit.nn.accumulate_exactly(model, micro_batches, loss)
        return
    losses = bnkit.nn.accumulate_exactly(model, micro_batches, loss)
    expected = loss(twin, whole)
    expected.backward()
    torch.testing.assert_close(losses.sum(), expected.detach(), rtol=1e-4, atol=1e-3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)
    assert_close_state(model, state(twin))


@each
def test_exchanged_for_a_group_norm_or_refused(name):
    model = nn.Sequential(make(name))
    shown, before = repr(model), state(model)
    why = reason(
        name,
        {
            "Ghost": "forward pass of its own", "BatchRenorm": "forward pass of its own",
            "Masked": "forward pass of its own", "Diff": "forward pass of its own",
            "Whitened": "matrix, which would be lost", "BatchNorm ": "channels anywhere", "SyncBatchNorm": "synchronized=True",
        },
        {"BatchNorm": "channels anywhere"},
    )  # fmt: skip
    if why is None:
        done = bnkit.nn.replace_(model, to="group")
        assert done.replaced == tuple(norms(nn.Sequential(make(name))))
        assert not norms(model)
        bnkit.nn.replace_(model, to="batch")
        assert_state(model, before)
        return
    with pytest.raises(ConversionError, match=why):
        bnkit.nn.replace_(model, to="group")
    assert list(bnkit.nn.replace_(model, to="group", strict=False).kept) == ["0"]
    assert repr(model) == shown


@pytest.mark.parametrize("name", LAYERS)
def test_back_to_torch_or_kept_with_a_reason(name):
    model = nn.Sequential(make(name))
    x = batch(name)
    shown, names = repr(model), tuple(norms(model))
    done = bnkit.nn.restore_(model)
    own = re.match(r"BatchNorm(Act|$| )|Masked|Domain|Whitened|Lazy(?!BatchNorm\d)", name)
    if own is None:
        assert (done.replaced, done.kept) == (names, {})
        assert type(model[0]).__module__.startswith("torch.nn.")
        assert model(x).shape == x.shape
        return
    assert "is no layer of torch" in done.kept["0"]
    if name.startswith("Domain"):
        assert done.replaced == names
    else:
        assert repr(model) == shown


@each
@pytest.mark.parametrize("function", ["ghost_", "renorm_"])
def test_switched_or_kept_with_a_reason(name, function):
    model = nn.Sequential(make(name))
    call = getattr(bnkit.nn, function)
    done = call(model, 2) if function == "ghost_" else call(model)
    assert {*done.replaced, *done.kept} == set(norms(model))
    plain = re.fullmatch(r"BatchNorm[123]d|Domain.*", name)
    assert bool(done.replaced) == bool(plain), done
    bnkit.nn.freeze_(model)
    before = state(model)
    model.train()(batch(name))
    assert_state(model, before)
    bnkit.nn.unfreeze_(model)
    bnkit.nn.plain_(model)
    model(batch(name))


@each
def test_a_skipped_step_leaves_no_trace(name):
    model = nn.Sequential(make(name))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = state(model)
    with bnkit.nn.commit_on_step(model, optimizer):
        model(batch(name)).sum().backward()
    assert_state(model, before)
    twin = copy.deepcopy(model)
    twin(batch(name))
    with bnkit.nn.commit_on_step(model, optimizer):
        model(batch(name)).sum().backward()
        optimizer.zero_grad()
        optimizer.step()
    assert_state(model, state(twin))


@each
def test_policies_within_each_other(name):
    model = nn.Sequential(make(name))
    x, before = batch(name), state(model)
    with bnkit.nn.rollback(model) as r:
        with bnkit.nn.no_update(model):
            model(x)
            with bnkit.nn.frozen(model):
                frozen = model.train()(x)
        model(x)
        r.rollback()
    assert_state(model, before)
    assert torch.equal(frozen, copy.deepcopy(model).eval()(x))
    assert all(row.updates == "each forward pass" for row in bnkit.nn.policy(model))


@each
def test_the_table_shows_it(name):
    model = nn.Sequential(make(name))
    table = bnkit.nn.policy(model)
    assert [row.name for row in table] == list(norms(model))
    bnkit.nn.freeze_(model, affine=True)
    assert {row.normalizes_with for row in bnkit.nn.policy(model)} == {"running (frozen)"}
    assert {row.affine for row in bnkit.nn.policy(model)} == {"frozen"}


@each
def test_domains_of_any_layer(name):
    if name.startswith("Domain"):
        return
    model = nn.Sequential(make(name))
    x = batch(name)
    expected = copy.deepcopy(model)(x)
    assert bnkit.nn.add_domains_(model, ("day", "night"), default="day").replaced == ("0",)
    assert torch.equal(model(x), expected)
    layer = model[0].of("night")
    assert int(layer.num_batches_tracked) == 3
    bnkit.nn.keep_domain_(model, "night")
    assert model[0] is layer


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("replace_", bnkit.nn.replace_),
        ("restore_", bnkit.nn.restore_),
        ("plain_", bnkit.nn.plain_),
        ("ghost_", lambda m: bnkit.nn.ghost_(m, 2)),
        ("renorm_", bnkit.nn.renorm_),
        ("convert_sync_batchnorm", bnkit.nn.convert_sync_batchnorm),
        ("revert_sync_batchnorm", bnkit.nn.revert_sync_batchnorm),
        ("accumulate", lambda m: bnkit.nn.accumulate(m).__enter__()),
        ("accumulate_exactly", lambda m: bnkit.nn.accumulate_exactly(m, [1], None)),
        ("domain", lambda m: bnkit.nn.domain(m, "day").__enter__()),
        ("add_domains_", lambda m: bnkit.nn.add_domains_(m, ("day",))),
        ("keep_domain_", lambda m: bnkit.nn.keep_domain_(m, "day")),
    ],
)
def test_a_model_must_be_a_module(verb, call):
    with pytest.raises(InputError, match=f"{verb}: expected a torch.nn.Module, got list"):
        call([bnkit.nn.BatchNorm1d(2)])


def test_rolled_back_statistics_are_live_no_longer():
    layer = make("DifferentiableBatchNorm1d")
    x = batch("DifferentiableBatchNorm1d").requires_grad_()
    with bnkit.nn.rollback(layer):
        layer(x)
        assert layer.live is not None
    assert layer.live is None
    layer(x)
    with bnkit.nn.no_update(layer):
        layer(x * 2)
    torch.testing.assert_close(layer.live.mean.detach(), layer.running_mean)


def test_a_layer_that_changes_class_within_a_rollback():
    layer = make("BatchRenorm2d")
    mean = layer.running_mean.clone()
    with bnkit.nn.rollback(layer):
        layer(batch("BatchRenorm2d"))
        bnkit.nn.plain_(layer)
    assert "renorm_mean" not in layer.state_dict()
    assert torch.equal(layer.running_mean, mean)


def test_a_synchronized_layer_is_no_ghost():
    model = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4)))
    done = bnkit.nn.ghost_(model, 2)
    assert done.replaced == ()
    assert "revert_sync_batchnorm" in done.kept["0"]


def test_a_layer_that_is_not_trainable_is_shown_as_such():
    layer = bnkit.nn.BatchNorm(4, trainable=False)
    (row,) = bnkit.nn.policy(layer)
    assert (row.normalizes_with, row.updates, row.affine) == (
        "running (not trainable)", "never", "frozen",
    )  # fmt: skip

"""Micro-batches: statistics once per step, and the one big batch exactly."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import (
    ConversionError,
    EmptyBatchWarning,
    NonFiniteError,
    NonFiniteWarning,
)
from bnkit.nn import accumulate, accumulate_exactly
from tests.tolerances import FLOAT64


def values(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return (x + torch.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1)) / 3).to(dtype)


def close(got, expected, tolerance=FLOAT64):
    scale = float(expected.abs().max().clamp(min=1e-3))
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("k", [1, 2, 3, 12])
def test_statistics_of_one_layer_are_those_of_the_one_batch(k):
    x = values(24, 3, 4)
    layer, plain = bnkit.nn.BatchNorm1d(3).double(), bnkit.nn.BatchNorm1d(3).double()
    for _ in range(2):
        with accumulate(layer):
            for part in x.split([1] * (k - 1) + [24 - k + 1]):
                y = layer(part)
            assert "accumulating=True" in repr(layer)
        plain(x)
    for p, q in zip(layer.buffers(), plain.buffers(), strict=True):
        close(p.double(), q.double())
    assert repr(layer) == repr(plain)
    assert "_part" not in layer.__dict__
    torch.testing.assert_close(y, bnkit.nn.BatchNorm1d(3).double()(part))  # its own statistics


def test_torch_makes_as_many_steps_as_micro_batches():
    """16 micro-batches = 16 steps of the average in torch (pytorch#46516), one here."""
    x = values(64, 3)
    theirs, ours = nn.BatchNorm1d(3).double(), bnkit.nn.BatchNorm1d(3).double()
    with accumulate(ours):
        for part in x.chunk(16):
            ours(part), theirs(part)
    close(ours.running_mean, 0.1 * x.mean(0))
    assert int(ours.num_batches_tracked) == 1
    assert int(theirs.num_batches_tracked) == 16
    assert (theirs.running_mean - ours.running_mean).abs().min() > 1


def test_cumulative_average_shared_layers_and_activation():
    shared = bnkit.nn.BatchNormAct1d(3, momentum=None).double()
    model = nn.Sequential(shared, nn.Linear(3, 3).double(), shared)
    x = values(8, 3)
    with accumulate(model):
        model(x)
    assert int(shared.num_batches_tracked) == 1  # both uses are one batch
    with accumulate(model):
        model(x)
    assert int(shared.num_batches_tracked) == 2


def test_masked_layers():
    x, mask = values(6, 3, 4), torch.arange(4) < torch.tensor([1, 2, 3, 4, 1, 4])[:, None]
    layer, whole = bnkit.nn.MaskedBatchNorm1d(3).double(), bnkit.nn.MaskedBatchNorm1d(3).double()
    weights = torch.linspace(0.3, 2.1, 6).double()
    for given in ({"mask": mask}, {"sample_weight": weights}):
        with accumulate(layer):
            for i in range(0, 6, 2):
                layer(x[i : i + 2], **{k: v[i : i + 2] for k, v in given.items()})
        whole(x, **given)
        for p, q in zip(layer.buffers(), whole.buffers(), strict=True):
            close(p.double(), q.double())


def test_nested_contexts_make_one_step():
    layer, plain = bnkit.nn.BatchNorm1d(3).double(), bnkit.nn.BatchNorm1d(3).double()
    x = values(8, 3)
    with accumulate(layer):
        for half in x.chunk(2):
            with accumulate(layer):
                for part in half.chunk(2):
                    layer(part)
    plain(x)
    close(layer.running_var, plain.running_var)
    assert int(layer.num_batches_tracked) == 1


def test_exception_leaves_everything_as_it_was():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(3), bnkit.nn.BatchNorm1d(3).eval())
    before = copy.deepcopy(model.state_dict())

    def step():
        with accumulate(model):
            model(torch.randn(4, 3))
            msg = "in the middle"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="in the middle"):
        step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all("_part" not in m.__dict__ for m in model)
    with accumulate(model):
        pass
    assert int(model[0].num_batches_tracked) == 0


def test_what_the_policy_does_not_count_is_not_merged():
    x = values(8, 3).requires_grad_()
    layer, plain = bnkit.nn.BatchNorm1d(3).double(), bnkit.nn.BatchNorm1d(3).double()
    run = partial(torch.utils.checkpoint.checkpoint, layer, use_reentrant=False)
    with accumulate(layer):
        run(x[:2]).pow(3).sum().backward()
        with bnkit.nn.no_update(layer):
            layer(x[2:4])
        with bnkit.nn.frozen(layer):
            layer(x[4:6])
        layer(x[6:])
    plain(torch.cat([x[:2], x[6:]]))
    for p, q in zip(layer.buffers(), plain.buffers(), strict=True):
        close(p.double(), q.double())


def test_copies_made_within_are_not_in_the_context():
    layer = bnkit.nn.SyncBatchNorm(3)
    with accumulate(layer):
        twins = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for twin in twins:
        assert repr(twin) == repr(layer)
        twin(torch.randn(4, 3))
        assert int(twin.num_batches_tracked) == 1
    plain = bnkit.nn.BatchNorm1d(3)
    with accumulate(plain):
        assert "accumulating" not in repr(copy.deepcopy(plain))


def test_bad_micro_batches_are_left_out():
    x = values(12, 3)
    bad = x[4:8].clone()
    bad[0, 0] = torch.nan
    layer, plain = bnkit.nn.BatchNorm1d(3).double(), bnkit.nn.BatchNorm1d(3).double()
    with accumulate(layer):
        layer(x[:4])
        with pytest.warns(NonFiniteWarning):
            layer(bad)
        with pytest.warns(EmptyBatchWarning):
            layer(x[:0])
        layer(x[8:])
    plain(torch.cat([x[:4], x[8:]]))
    close(layer.running_var, plain.running_var)
    assert int(layer.nonfinite_batches) == 1
    only_bad = bnkit.nn.BatchNorm1d(3).double()
    with accumulate(only_bad), pytest.warns(NonFiniteWarning):
        only_bad(bad)
    assert only_bad.running_mean.tolist() == [0, 0, 0]
    assert int(only_bad.num_batches_tracked) == 0
    strict = bnkit.nn.BatchNorm1d(3, on_nonfinite="raise").double()
    with pytest.raises(NonFiniteError), accumulate(strict):
        strict(bad)
    loose = bnkit.nn.BatchNorm1d(3, on_nonfinite="propagate").double()
    with accumulate(loose):
        loose(bad)
    assert loose.running_mean.isnan().any()


def test_layers_of_torch_are_refused_by_name():
    model = nn.Sequential(bnkit.nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    message = r"accumulate: .*'1' \(BatchNorm1d of torch.*replace_"
    with pytest.raises(ConversionError, match=message), accumulate(model):
        pass
    with pytest.raises(ConversionError, match=r"accumulate_exactly: .*'1'"):
        accumulate_exactly(model, [torch.randn(4, 3)], lambda m, x: m(x).sum())
    model[1].eval()
    with accumulate(model):
        model(torch.randn(4, 3))


def test_compiled_layers():
    torch._dynamo.reset()
    layer, plain = bnkit.nn.BatchNorm1d(3).double(), bnkit.nn.BatchNorm1d(3).double()
    compiled = torch.compile(layer, backend="aot_eager")
    x = values(8, 3)
    with accumulate(layer):
        for part in x.chunk(2):
            compiled(part)
    plain(x)
    for p, q in zip(layer.buffers(), plain.buffers(), strict=True):
        close(p.double(), q.double())

"""Synchronized batch norm: two processes, and what one process can tell."""

import copy
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import ConversionError
from bnkit.nn import SyncBatchNorm, accumulate, convert_sync_batchnorm, revert_sync_batchnorm
from tests.nn.two_processes import CHECKS

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    logs = [(folder / f"rank{rank}.log").open("w+") for rank in range(2)]
    running = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), str(folder)], stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        for process in running:
            process.wait(timeout=120)
    finally:
        for process in running:
            process.kill()
            process.wait()
    found = []
    for rank, log in enumerate(logs):
        log.seek(0)
        text, path = log.read(), folder / f"rank{rank}.json"
        found.append(json.loads(path.read_text()) if path.exists() else {})
        found[-1]["log"] = text
        log.close()
    return found


@pytest.mark.parametrize("check", [c.__name__ for c in CHECKS])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes(results, check, rank):
    assert check in results[rank], results[rank]["log"]
    assert results[rank][check]["problem"] is None, results[rank][check]["problem"]


class Tagged(nn.BatchNorm2d):
    """A subclass without a forward pass of its own."""

    def describe(self):
        return f"tagged {self.num_features}"


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def network():
    torch.manual_seed(0)
    shared = bnkit.nn.BatchNorm2d(4, momentum=0.3)
    return nn.Sequential(
        nn.BatchNorm2d(4, eps=1e-3),
        Tagged(4),
        bnkit.nn.BatchNormAct2d(4),
        shared,
        nn.SyncBatchNorm(4),
        shared,
        SyncBatchNorm(4),
    )


def test_conversion_and_its_exact_inverse():
    model = network()
    model[0].bfloat16()
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append("forward"))
    parameters = dict(model.named_parameters())
    before = [(type(m), set(m.__dict__), m.training) for m in model]
    text = repr(model)
    assert convert_sync_batchnorm(model) is model
    assert all(m._part is not None for m in model)
    assert repr(model).count("synchronized=True") == 7
    assert isinstance(model[1], Tagged)
    assert model[1].describe() == "tagged 4"
    assert type(model[2]) is bnkit.nn.BatchNormAct2d
    assert model[3] is model[5]
    model[1:](torch.randn(3, 4, 2, 2)).sum().backward()
    assert calls == ["forward"]
    convert_sync_batchnorm(model)  # nothing is left to do
    assert revert_sync_batchnorm(model) is model
    assert [(type(m), set(m.__dict__), m.training) for m in model] == before
    assert all(dict(model.named_parameters())[k] is v for k, v in parameters.items())
    assert model[0].running_mean.dtype == torch.bfloat16
    assert repr(model) == text
    revert_sync_batchnorm(model)
    assert repr(model) == text


def test_root_and_restore():
    root = nn.BatchNorm1d(3)
    assert SyncBatchNorm.convert_sync_batchnorm(root) is root
    assert type(root) is bnkit.nn.BatchNorm1d
    bnkit.nn.restore_(root)
    assert type(root) is nn.BatchNorm1d
    assert "_part" not in root.__dict__
    native = nn.SyncBatchNorm(3)
    assert bnkit.nn.replace_(native).replaced == ("",)
    assert native(torch.randn(4, 3)).shape == (4, 3)
    bnkit.nn.restore_(native)
    assert type(native) is nn.SyncBatchNorm
    assert native.process_group is None


def test_behaviour_is_refused_not_dropped():
    model = nn.Sequential(nn.BatchNorm2d(4), Own(4))
    with pytest.raises(ConversionError, match="'1': Own has a forward pass of its own"):
        convert_sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d
    with pytest.raises(ConversionError, match=r"'0' \(LazyBatchNorm1d\)\. Run one batch"):
        convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm1d()))
    plain = nn.Sequential(bnkit.nn.BatchNorm1d(3))
    with (
        accumulate(plain),
        pytest.raises(ConversionError, match="'0' with accumulating=True"),
    ):
        convert_sync_batchnorm(plain)


def test_frozen_layers():
    model = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))
    bnkit.nn.freeze_(model)
    with pytest.raises(ConversionError, match=r"'0' with StatisticsPolicy.*unfreeze_"):
        revert_sync_batchnorm(model)
    before = model[0].running_mean.clone()
    model.train()(torch.randn(4, 3))
    torch.testing.assert_close(model[0].running_mean, before, rtol=0, atol=0)
    bnkit.nn.unfreeze_(model)
    assert type(revert_sync_batchnorm(model)[0]) is nn.BatchNorm1d


def test_alone_it_is_plain_batch_norm():
    layer, plain = SyncBatchNorm(3), bnkit.nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    y, z = layer(a), plain(b)
    torch.testing.assert_close(y, z, rtol=0, atol=0)
    y.pow(3).sum().backward(), z.pow(3).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
    torch.testing.assert_close(layer.running_var, plain.running_var, rtol=0, atol=0)
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x), rtol=0, atol=0)
    assert torch.autograd.gradgradcheck(
        layer.double().train(), torch.randn(4, 3).double().requires_grad_()
    )


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_stay_synchronized(how):
    model = convert_sync_batchnorm(network())
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert repr(twin) == repr(model)
    assert all(m._part is not None for m in twin)
    assert twin[0]._part is not model[0]._part
    assert list(twin.state_dict()) == list(model.state_dict())
    revert_sync_batchnorm(twin)
    assert type(twin[0]) is nn.BatchNorm2d


def test_state_dict_is_torchs():
    theirs, ours = nn.SyncBatchNorm(3), SyncBatchNorm(3)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    program = torch.export.export(ours.eval(), (torch.randn(2, 3),))
    assert program.module()(torch.zeros(2, 3)).shape == (2, 3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3,), "expected 2D"), ((2, 4), "should contain 4 elements"), ((1, 3), "more than 1 value")],
)
def test_bad_input_names_the_layer(shape, message):
    model = nn.Sequential(nn.Identity(), convert_sync_batchnorm(bnkit.nn.BatchNorm1d(3)))
    with pytest.raises(bnkit.core.InputError, match=rf"'1' \(BatchNorm1d\): .*{message}"):
        model(torch.randn(*shape))

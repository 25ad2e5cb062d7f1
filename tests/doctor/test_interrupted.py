"""Ctrl-C at any moment: the model, the generators and the files are what they were."""

import hashlib
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.cli import main


class Counted(nn.Module):
    """Is interrupted in a given forward pass, counted over all copies."""

    calls = 0
    stop = 0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1))

    def forward(self, x):
        type(self).calls += 1
        if type(self).calls == type(self).stop:
            raise KeyboardInterrupt
        return self.body(x)


def data():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return x, (x.sum(1) > 0).long()


def everything(model):
    modules = {
        n: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
        for n, m in model.named_modules()
    }
    drawn = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    state = {k: v.tolist() for k, v in model.state_dict().items()}
    return modules, drawn, state


WORK = {
    "diagnose": lambda model: bnkit.diagnose(model, data(), batch_size=16),
    "recalibrate": lambda model: bnkit.recalibrate(model, data(), batch_size=16),
    "recalibrate_": lambda model: bnkit.recalibrate_(model, data(), batch_size=16, consistent=True),
}


def passes_of(work):
    Counted.calls, Counted.stop = 0, 0
    WORK[work](Counted())
    return Counted.calls


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("work", WORK)
def test_in_every_forward_pass(work, training):
    passes = passes_of(work)
    assert passes >= 4
    for stop in range(1, passes + 1):
        model = Counted().train(training)
        before = everything(model)
        Counted.calls, Counted.stop = 0, stop
        with pytest.raises(KeyboardInterrupt):
            WORK[work](model)
        assert Counted.calls == stop
        assert everything(model) == before, stop


MODEL = """
import signal
import torch
from torch import nn

calls, stop = 0, 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3))
        nn.init.uniform_(self.body[1].weight, 0.5, 1.5)

    def forward(self, x):
        global calls
        calls += 1
        if calls == stop:
            signal.raise_signal(signal.SIGINT)
        return self.body(x)


def rows():
    return 3 + 5 * torch.randn(640, 4, generator=torch.Generator().manual_seed(0))


def lost():
    return Net().eval()


def labelled():
    net = Net()
    net.body[1].momentum = None
    return rows(), net(rows()).argmax(1)
"""


def contents(folder):
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def module():
    import sys

    return next(
        m for n, m in sys.modules.items() if n.startswith("bnkit_named_") and "stop" in vars(m)
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.startswith("bnkit_named_")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "m.py").write_text(MODEL)
    from bnkit.sources.callables import load_model

    torch.save(load_model("m.py:lost").state_dict(), "net.pt")
    return tmp_path


COMMANDS = {
    "doctor": "doctor m.py:lost --data m.py:labelled --output page.html --format html",
    "fix": "fix m.py:lost --recalibrate m.py:labelled --output mended.pt",
    "recalibrate": "recalibrate net.pt --model m.py:lost --data m.py:rows",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_in_every_forward_pass_of_a_command(folder, command, capsys):
    words = COMMANDS[command].split()
    running = module()
    running.calls = 0
    assert main(words) in {0, 1}
    passes = running.calls
    for path in ("page.html", "mended.pt", "net.recalibrated.pt"):
        (folder / path).unlink(missing_ok=True)
    before = contents(folder)
    for stop in {1, 2, 3, *range(4, passes, max(1, passes // 12)), passes}:
        running.calls, running.stop = 0, stop
        assert main(words) == 130, stop
        kept = folder / ".net.recalibrated.pt.recalibration"
        kept.unlink(missing_ok=True)  # what was gathered, to go on from
        assert contents(folder) == before, stop
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "Stopped" in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("command", COMMANDS)
def test_while_the_file_is_written(folder, command, capsys, monkeypatch):
    from pathlib import Path

    before = contents(folder)
    running = module()
    running.calls = running.stop = 0

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    assert main(COMMANDS[command].split()) == 130
    assert contents(folder) == before
    assert "Stopped" in capsys.readouterr().err

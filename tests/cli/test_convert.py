"""`bnkit convert`: new files, tables, JSON, refusals and exit codes."""

import json

import numpy as np
import pytest
import torch

from bnkit.cli import main
from bnkit.sources.checkpoint import read_checkpoint
from tests.conversion.test_plan import checkpoint

MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(3, 4)
        self.bn1 = nn.BatchNorm1d(4)
        self.fc2 = nn.Linear(4, 4)
        self.bn2 = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 2)

def smaller():
    net = Net()
    del net.out
    return net

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL, encoding="utf-8")
    np.savez(tmp_path / "tf.npz", **checkpoint())
    return tmp_path


def run(*words):
    return main([*map(str, words)])


def test_a_checkpoint_becomes_a_state_dict(folder, capsys):
    status = run(
        "convert", "tf.npz", "new.safetensors", "--model", "net.py:Net", "--spec", "keras3"
    )
    out = capsys.readouterr().out
    assert status == 0
    assert "net/batch_normalization_1" in out
    assert "order and shape" in out
    assert "inference is equal; training does not go on alike." in out
    assert "Written: new.safetensors" in out
    tensors = read_checkpoint(folder / "new.safetensors").tensors
    want = checkpoint()["net/batch_normalization_1/moving_variance"] + np.float32(1e-3 - 1e-5)
    np.testing.assert_allclose(tensors["bn2.running_var"].numpy(), want, rtol=1e-6)


def test_a_dry_run_changes_nothing(folder, capsys):
    before = sorted(p.name for p in folder.iterdir())
    assert run("convert", "tf.npz", "--model", "net.py:Net", "--dry-run") == 0
    assert "Nothing was written (--dry-run)." in capsys.readouterr().out
    assert {*before, "__pycache__"} >= {p.name for p in folder.iterdir()}


@pytest.mark.usefixtures("folder")
def test_json_names_everything(capsys):
    words = ("convert", "tf.npz", "new.npz", "--model", "net.py:smaller", "--partial", "--json")
    assert run(*words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] == "new.npz"
    assert found["unused"] == ["net/dense_2/kernel", "net/dense_2/bias"]
    assert found["restored"]["fc2.weight"] == "net/dense_1/kernel"
    assert found["layers"][1]["one_step"] == {"statistics": False, "output": False}


def test_back_into_a_file_and_with_a_file_of_rules(folder, capsys):
    rules = {"rules": {r"net/dense(_1)?": "fc1"}, "spec": {".*": "keras3"}, "leave": ["fc?.bias"]}
    (folder / "rules.json").write_text(json.dumps(rules), encoding="utf-8")
    words = ("convert", "tf.npz", "new.pt", "--model", "net.py:Net", "--rules", "rules.json")
    assert run(*words) == 1
    assert "rule for 'net/dense_1'" in capsys.readouterr().err
    rules["rules"] = {"net/dense": "fc1"}
    (folder / "rules.json").write_text(json.dumps(rules), encoding="utf-8")
    assert run(*words) == 0
    assert "left as they are, as asked: fc1.bias, fc2.bias" in capsys.readouterr().out
    assert run("convert", "new.pt", "back.npz", "--like", "tf.npz", "--to", "tf1") == 0
    with np.load("back.npz") as back:
        np.testing.assert_array_equal(back["net/dense/kernel"], checkpoint()["net/dense/kernel"])
        np.testing.assert_allclose(
            back["net/batch_normalization/moving_variance"],
            checkpoint()["net/batch_normalization/moving_variance"],
            rtol=1e-6,
        )


REFUSED = {
    "no place": (["tf.npz", "x.npz"], "expected --model path.py:name or --like FILE"),
    "two places": (["tf.npz", "x.npz", "--model", "net.py:Net", "--like", "tf.npz"], "one of both"),
    "no name": (["tf.npz", "--model", "net.py:Net"], "expected the name of the new file"),
    "no file": (["no.npz", "x.npz", "--model", "net.py:Net"], "'no.npz'"),
    "no model": (["tf.npz", "x.npz", "--model", "net.py:Net2"], "It has: Net, smaller"),
    "a number": (["tf.npz", "x.npz", "--model", "net.py:number"], "a value of type int"),
    "framework": (
        ["tf.npz", "x.npz", "--model", "net.py:Net", "--from", "tf9"],
        "Known: torch, tf1",
    ),
    "wrong to": (["tf.npz", "x.npz", "--model", "net.py:Net", "--to", "flax"], "got one of torch"),
    "spec": (
        ["tf.npz", "x.npz", "--model", "net.py:Net", "--spec", "kers3"],
        "did you mean keras3",
    ),
    "rules": (["tf.npz", "x.npz", "--model", "net.py:Net", "--rules", "no.json"], "a JSON file"),
    "rules 2": (["tf.npz", "x.npz", "--model", "net.py:Net", "--rules", "bad.json"], "got rulez"),
    "flatten": (
        ["tf.npz", "x.npz", "--model", "net.py:Net", "--flatten", "fc1=a"],
        "such as fc=7x7",
    ),
    "flatten 2": (["tf.npz", "x.npz", "--model", "net.py:Net", "--flatten", "f=2x2"], "got 'f'"),
    "ending": (["tf.npz", "x.h5", "--model", "net.py:Net"], "ends in .pt"),
    "exists": (["tf.npz", "tf.npz", "--model", "net.py:Net"], "got one that exists"),
    "part": (
        ["tf.npz", "x.npz", "--model", "net.py:smaller"],
        "has no place for net/dense_2/kernel",
    ),
    "spec twice": (
        ["tf.npz", "x.npz", "--model", "net.py:Net", "--spec", "keras3", "--rules", "spec.json"],
        "expected it once",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_use_is_one_clear_sentence(folder, capsys, name):
    (folder / "bad.json").write_text('{"rulez": {}}', encoding="utf-8")
    (folder / "spec.json").write_text('{"spec": "keras3"}', encoding="utf-8")
    before = (folder / "tf.npz").read_bytes()
    words, message = REFUSED[name]
    assert run("convert", *words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert (folder / "tf.npz").read_bytes() == before
    assert not list(folder.glob("x.*"))


@pytest.mark.usefixtures("folder")
def test_an_unknown_option_is_wrong_usage():
    assert run("convert", "tf.npz", "x.npz", "--modle", "net.py:Net") == 2


def test_a_flattened_map(folder, capsys):
    (folder / "conv.py").write_text(
        "from torch import nn\n"
        "net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 3))\n",
        encoding="utf-8",
    )
    kernel = np.arange(24, dtype=np.float32).reshape(8, 3)
    file = {"n/conv2d/kernel": np.ones((1, 1, 1, 2), np.float32), "n/dense/kernel": kernel}
    np.savez(folder / "conv.npz", **file)
    words = ("convert", "conv.npz", "new.pt", "--model", "conv.py:net", "--from", "tf1")
    assert run(*words) == 1
    assert "perhaps (2, 2): flatten={'2': (h, w)}" in capsys.readouterr().err
    assert run(*words, "--flatten", "2=2x2") == 0
    weight = read_checkpoint(folder / "new.pt").tensors["2.weight"]
    assert torch.equal(weight[0], torch.tensor([0.0, 6, 12, 18, 3, 9, 15, 21]))
    assert run(*words, "--flatten", "2=none", "--force") == 0
    weight = read_checkpoint(folder / "new.pt").tensors["2.weight"]
    assert torch.equal(weight, torch.from_numpy(kernel.T))

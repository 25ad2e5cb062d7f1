"""`bnkit fold` as a user types it."""

import json

import numpy as np
import pytest
import torch

from bnkit.cli.app import run

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )

def batches():
    return [(torch.randn(4, 3, 8, 8), torch.zeros(4))]

def words():
    return [["a", "b"]]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(20, 3, 8, 8)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("data", ["model.py:batches", "x.npz"])
def test_table_json_and_state_dict(place, capsys, data):
    words = ["fold", "model.py:net", "--data", data, "-o", "out.safetensors", "--json", "out.json"]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "2 batch norms: 1 folded, 1 left as scale and shift" in text
    assert "1 (BatchNorm2d): folded into 0" in text
    document = json.loads((place / "out.json").read_text(encoding="utf-8"))
    assert document["proof"]["holds"]
    from safetensors.torch import load_file

    state = load_file(place / "out.safetensors")
    assert {"0.weight", "0.bias", "3.scale", "3.shift"} <= {*state}
    assert not list(place.glob(".*"))


def test_program(place):
    assert run(["fold", "model.py:net", "--data", "x.npz", "-o", "out.pt2", "--quiet"]) == 0
    program = torch.export.load(place / "out.pt2")
    x = torch.randn(8, 3, 8, 8)
    names = [str(n.target) for n in program.graph.nodes]
    assert not any("batch_norm" in name for name in names)
    assert program.module()(x).shape == (8, 2, 6, 6)


def test_check_writes_nothing_and_fails_above_tolerance(place, capsys):
    words = ["fold", "model.py:net", "--data", "x.npz", "--check", "-o", "out.pt2"]
    assert run(words) == 0
    assert not (place / "out.pt2").exists()
    assert run([*words[:-3], "-o", "out.pt2", "--tolerance", "1e-15"]) == 1
    assert not (place / "out.pt2").exists()
    captured = capsys.readouterr()
    assert "NOT EQUAL" in captured.out
    assert "not equal within tolerance" in captured.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.py:net"], "Pass --data"),
        (["model.py:net", "--data", "no.npz"], "no.npz"),
        (["model.py:none", "--data", "x.npz"], "none"),
        (["model.py:net", "--data", "model.py:words"], "expected a batch that is a tensor"),
        (["model.py:net", "--data", "x.npz", "-o", "x.txt"], "expected a new file"),
        (["model.py:net", "--data", "x.npz", "-o", "x.npz"], "expected a new file"),
        (["model.py:net", "--data", "x.npz", "-o", "no/x.pt2"], "expected a new file"),
        (["model.onnx", "-o", "x.pt2"], "expected a new file"),
    ],
)
@pytest.mark.usefixtures("place")
def test_bad_usage_is_one_clear_sentence(capsys, words, said):
    assert run(["fold", *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert "bug in bnkit" not in error


def test_weights_without_statistics_are_not_folded(place, capsys):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    state = layers.state_dict()
    torch.save({n: t for n, t in state.items() if "num_batches" not in n}, place / "counts.pt")
    torch.save({n: t for n, t in state.items() if "running" not in n}, place / "lost.pt")
    words = ["fold", "model.py:net", "--data", "x.npz", "-o", "out.pt2", "--quiet", "--weights"]
    assert run([*words, "lost.pt"]) == 1
    assert "expected the running statistics" in capsys.readouterr().err
    assert not (place / "out.pt2").exists()
    assert run([*words, "counts.pt"]) == 0


def test_tied_weights_are_written_under_both_names(place):
    (place / "tied.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    m = nn.Sequential(\n"
        "        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))\n"
        "    m[4].weight = m[3].weight\n"
        "    return m\n",
        encoding="utf-8",
    )
    np.savez(place / "flat.npz", x=np.random.default_rng(0).normal(size=(20, 4)))
    words = ["fold", "tied.py:net", "--data", "flat.npz", "-o", "out.safetensors", "--quiet"]
    assert run(words) == 0
    from safetensors.torch import load_file

    assert {"3.weight", "4.weight"} <= {*load_file(place / "out.safetensors")}


def test_what_cannot_be_exported_is_one_clear_sentence(place, capsys):
    (place / "steps.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)\n"
        "        return y if float(y.sum()) > 0 else -y\n"
        "def net():\n"
        "    return Net(nn.Linear(4, 4), nn.BatchNorm1d(4))\n",
        encoding="utf-8",
    )
    np.savez(place / "flat.npz", x=np.random.default_rng(0).normal(size=(20, 4)))
    assert run(["fold", "steps.py:net", "--data", "flat.npz", "-o", "out.pt2", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "torch.export follows" in error
    assert "bug in bnkit" not in error
    assert not (place / "out.pt2").exists()

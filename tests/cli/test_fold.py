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
def test_bad_usage_is_one_clear_sentence(place, capsys, words, said):
    assert run(["fold", *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert "bug in bnkit" not in error

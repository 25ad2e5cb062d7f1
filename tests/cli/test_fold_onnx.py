"""`bnkit fold net.onnx` as a user types it."""

import json

import numpy as np
import onnx
import pytest

from bnkit.cli.app import run
from tests.fold.onnx_files import feeds, path_of


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("conv1d", "training_mode_opset15"):
        (tmp_path / f"{name}.onnx").write_bytes(path_of(name).read_bytes())
    ((inputs, _, _),) = feeds("conv1d")
    np.savez(tmp_path / "x.npz", **inputs)
    np.savez(tmp_path / "z.npz", z=np.zeros(3))
    np.savez(tmp_path / "wide.npz", x=inputs["x"].astype(float))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("data", [[], ["--data", "x.npz"]])
def test_table_json_and_file(place, capsys, data):
    assert run(["fold", "conv1d.onnx", *data, "-o", "out.onnx", "--json", "out.json"]) == 0
    text = capsys.readouterr().out
    assert "2 of 2 batch norms folded; relative error" in text
    assert "bn_3: folded into Conv 'conv_1' before it" in text
    document = json.loads((place / "out.json").read_text(encoding="utf-8"))
    label = "given inputs" if data else "made-up inputs"
    assert document["proof"]["checks"][0]["inputs"] == label
    model = onnx.load(place / "out.onnx")
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}


@pytest.mark.usefixtures("place")
def test_nothing_to_fold(capsys):
    assert run(["fold", "training_mode_opset15.onnx", "--check"]) == 0
    assert "0 of 1 batch norms folded; nothing was folded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.onnx"], "no file of that name"),
        (["conv1d.onnx", "--tolerance", "1e-12"], "got a relative error"),
        (["conv1d.onnx", "--data", "no.npz"], "expected an .npz file"),
        (["conv1d.onnx", "--data", "conv1d.onnx"], "expected an .npz file"),
        (["conv1d.onnx", "--data", "z.npz"], "expected ['x'], got ['z']"),
        (["conv1d.onnx", "--data", "wide.npz"], "expected float32, got float64"),
        (["conv1d.onnx", "--weights", "x.npz"], "expected no --weights"),
        (["conv1d.onnx", "-o", "x.npz"], "expected a new file"),
    ],
)
def test_bad_usage_is_one_clear_sentence(place, capsys, words, said):
    assert run(["fold", *words]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "Traceback" not in error
    assert "bug in bnkit" not in error
    assert not (place / "out.onnx").exists()

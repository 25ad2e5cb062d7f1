"""Folded models on disk: whole or not at all, with the data where the original had it."""

import numpy as np
import onnx
import pytest

from bnkit.core import OutputError
from bnkit.fold.onnx.reading import read_source
from bnkit.fold.onnx.saving import save
from tests.fold.onnx_graphs import Net, rewritten, same


@pytest.fixture
def pair():
    net = Net().conv("x", "a", 40, 3).bn("a", "n", 40).conv("n", "y", 8, 40)
    model = net.model()
    return model, rewritten(model)[0]


@pytest.mark.parametrize("external", [True, False])
def test_round_trip(pair, external, tmp_path):
    model, folded = pair
    path = save(folded, tmp_path / "folded.onnx", external=external)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == ({"folded.onnx", "folded.onnx.data"} if external else {"folded.onnx"})
    onnx.checker.check_model(str(path))
    read = read_source(path)
    assert read.external == external
    same(model, read.model)
    same(model, onnx.load(path))  # the package's own reader agrees
    for a, b in zip(read.model.graph.initializer, folded.graph.initializer, strict=True):
        assert a.raw_data == b.raw_data


def test_the_model_in_memory_keeps_its_data(pair, tmp_path):
    before = pair[1].SerializeToString()
    save(pair[1], tmp_path / "folded.onnx", external=True)
    assert pair[1].SerializeToString() == before


def test_a_data_file_that_another_model_points_to(pair, tmp_path):
    """Two files cannot be replaced at once, so the old model stays whole until its own turn."""
    model, folded = pair
    path = save(model, tmp_path / "net.onnx", external=True)
    old, data = path.read_bytes(), (tmp_path / "net.onnx.data").read_bytes()
    save(folded, path, external=True)
    assert (tmp_path / "net.onnx.data").read_bytes() == data
    same(model, read_source(path).model)
    path.write_bytes(old)
    same(model, read_source(path).model)
    assert len(list(tmp_path.iterdir())) == 3
    save(model, path, external=True)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("external", [True, False])
def test_a_place_that_cannot_be_written(pair, external, tmp_path):
    with pytest.raises(OutputError, match="expected to write the model there"):
        save(pair[1], tmp_path / "no" / "folded.onnx", external=external)
    (tmp_path / "folded.onnx").mkdir()
    with pytest.raises(OutputError):
        save(pair[1], tmp_path / "folded.onnx", external=False)
    assert [p.name for p in tmp_path.iterdir()] == ["folded.onnx"]


def test_small_tensors_stay_in_the_model(tmp_path):
    net = Net().conv("x", "a", 2, 3).bn("a", "y", 2)
    net.arrays["a_b"] = np.zeros(2)
    path = save(net.model(), tmp_path / "net.onnx", external=True)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert not read_source(path).external

"""Folded ONNX files in ONNX Runtime: as stored by exporters, and fresh from them."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from bnkit.fold.onnx import fold_onnx
from tests.fold.onnx_files import CASES, COUNTS, counts, feeds, path_of
from tests.fold.onnx_graphs import Net
from tests.tolerances import FRAMEWORK, relative_error

pytestmark = pytest.mark.frameworks
ort = pytest.importorskip("onnxruntime", reason="`make test-frameworks` installs ONNX Runtime")


def outputs(model, inputs, level="DISABLE"):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}_ALL")
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.mark.parametrize("name", CASES)
def test_stored_models(name):
    folding = fold_onnx(path_of(name))
    assert counts(folding.records) == COUNTS[name]
    if folding.folded:
        assert folding.proof.engine.startswith("onnxruntime")
        assert folding.proof.relative_error64 < 1e-12
    for inputs, expected, index in feeds(name):
        for level in ("DISABLE", "ENABLE"):
            got = outputs(folding.model, inputs, level)[index]
            assert relative_error(got, expected) < FRAMEWORK


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 18, 21])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_opsets(opset, kind):
    net = Net(opset, "float32").conv("x", "a", 4, 3, kind=kind).bn("a", "n", 4).op("Relu", "n", "y")
    proof = fold_onnx(net.model()).proof
    assert proof.engine.startswith("onnxruntime")
    assert 0 < proof.relative_error <= max(2e-6, 4 * proof.noise)


def test_what_onnxruntime_cannot_run_goes_to_the_reference():
    net = Net(22, "bfloat16").conv("x", "a", 4, 3).bn("a", "n", 4).op("Relu", "n", "y")
    proof = fold_onnx(net.model()).proof
    assert proof.engine.startswith("onnx.reference")
    assert proof.passed_over[0].startswith("onnxruntime: ")


def small_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.ConvTranspose2d(8, 6, 2, 2, groups=2), nn.BatchNorm2d(6), nn.Flatten(),
        nn.Linear(6 * 16 * 16, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2),
    )  # fmt: skip
    for _ in range(5):
        model(torch.randn(16, 3, 12, 12))
    return model.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", ["dynamo", "script"])
def test_fresh_exports(exporter):
    model, x = small_network(), torch.randn(4, 3, 12, 12)
    if exporter == "dynamo":
        pytest.importorskip("onnxscript", reason="torch's newer exporter needs onnxscript")
        program = torch.onnx.export(model, (x,), dynamo=True, optimize=False, verbose=False)
        data = program.model_proto.SerializeToString()
    else:
        buffer = io.BytesIO()
        preserve = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(
            model, (x,), buffer, dynamo=False, training=preserve, do_constant_folding=False
        )
        data = buffer.getvalue()
    folding = fold_onnx(data)
    assert counts(folding.records) == (5, 0, 0)
    assert folding.proof.relative_error <= max(2e-6, 4 * folding.proof.noise)
    (name,) = [v.name for v in folding.model.graph.input]
    (got,) = outputs(folding.model, {name: x.numpy()})
    with torch.no_grad():
        assert relative_error(got, model(x).numpy()) < FRAMEWORK
    assert np.abs(got).max() > 0.1

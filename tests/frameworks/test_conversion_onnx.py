"""ONNX Runtime itself: numbers written into a model, run by it; and read from one."""

import numpy as np
import pytest
import torch

import bnkit
from tests.frameworks.converted import LIMIT, TorchNet, images, random_net, torch_outputs
from tests.tolerances import relative_error

pytestmark = pytest.mark.frameworks
ort = pytest.importorskip("onnxruntime", reason="`make test-frameworks` installs ONNX Runtime")
onnx = pytest.importorskip("onnx")


def export(model, path):
    torch.onnx.export(
        model,
        (torch.zeros(4, 3, 9, 7),),
        str(path),
        input_names=["x"],
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )


def run(path, x):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})[0]


@pytest.mark.filterwarnings("ignore")  # torch's own, about its older exporter
def test_out_and_back(tmp_path):
    export(random_net(seed=1), tmp_path / "empty.onnx")  # equal tensors would be stored once
    source = random_net()
    new = bnkit.convert(source, tmp_path / "empty.onnx").write(tmp_path / "full.onnx")
    onnx.checker.check_model(str(new))
    want = torch_outputs(source, images())
    assert relative_error(run(new, images()), want) < 2 * LIMIT
    assert relative_error(run(tmp_path / "empty.onnx", images()), want) > 0.1
    again = TorchNet()
    bnkit.convert(new, again).apply()
    assert relative_error(torch_outputs(again, images()), want) < LIMIT

"""The rules of exported programs, on torch.export and on ONNX."""

import pytest
import torch

import bnkit


def codes(subject):
    return {f.code for f in bnkit.diagnose(subject).findings}


@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's own
def test_programs(patients):
    net, x = patients.chain(), patients.rows()
    evaluated = torch.export.export(net, (x[:8],))
    assert not {"BN701", "BN702"} & codes(evaluated)
    trained = torch.export.export(net.train(), (x[:8],))
    assert "BN701" in codes(trained)
    functional = trained.run_decompositions()
    assert "BN701" in codes(functional)


@pytest.mark.parametrize("mode", [0, 1])
def test_onnx(tmp_path, mode):
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    names = ["scale", "b", "mean", "var"]
    values = [torch.ones(3), torch.zeros(3) + 0.2, torch.zeros(3) + 0.1, torch.ones(3)]
    initial = [numpy_helper.from_array(v.numpy(), n) for n, v in zip(names, values, strict=True)]
    outputs = ["y", "m", "v"] if mode else ["y"]
    node = helper.make_node(
        "BatchNormalization", ["x", *names], outputs, name="bn", training_mode=mode
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", onnx.TensorProto.FLOAT, [8, 3])],
        [value("y", onnx.TensorProto.FLOAT, [8, 3])],
        initial,
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    found = bnkit.diagnose(path)
    assert [r.name for r in found.records] == ["bn"]
    assert found.records[0].eps == pytest.approx(1e-5)
    assert ("BN701" in {f.code for f in found.findings}) is bool(mode)

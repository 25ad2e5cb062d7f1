"""Numbers, names and refusals of the folding of ONNX graphs."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnkit.core.fold import inference_affine
from tests.fold.onnx_graphs import (
    BN,
    Net,
    fold_all,
    fold_none,
    kinds,
    node,
    numbers,
    rewritten,
    same,
)


def test_scaled_in_float64_and_rounded_once():
    net = Net(dtype="float32").conv("x", "a", 4, 3).bn("a", "y", 4)
    model = net.model()
    folded, _ = rewritten(model)
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, folded)
    )
    affine = inference_affine(
        np,
        (before["y_mean"], before["y_var"]),
        before["y_scale"],
        before["y_B"],
        float(np.float32(1e-5)),
    )
    scale = affine.scale[:, None, None, None]
    assert np.array_equal(
        after["a_W_folded"], (before["a_W"].astype(float) * scale).astype("float32")
    )
    bias = before["a_b"].astype(float) * affine.scale + affine.shift
    assert np.array_equal(after["a_b_folded"], bias.astype("float32"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 4e-3), ("bfloat16", 3e-2)])
def test_narrow_types(dtype, tolerance):
    net = Net(22, dtype).conv("x", "a", 4, 3).bn("a", "y", 4)
    folded = fold_all(net.model(), "Conv", tolerance)
    kind = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[dtype]
    assert {t.data_type for t in folded.graph.initializer} == {kind}


def test_weights_that_overflow_their_type():
    net = Net(dtype="float16").conv("x", "a", 4, 3)
    net.arrays["y_scale"] = np.full(4, 6e4)
    fold_none(net.bn("a", "y", 4).model(), "refused", "float16", "Conv")


def test_mixed_types():
    """From opset 15 on the statistics may be wider than the input."""
    net = Net(15, "float16").conv("x", "a", 4, 3).bn("a", "y", 4)
    for name in ("y_mean", "y_var", "y_scale", "y_B"):
        net.arrays[name] = net.arrays[name].astype("float32")
    fold_all(net.model(), "Conv", 4e-3)


@pytest.mark.parametrize("outputs", [["y", "a"], ["y", "z"]])
def test_a_convolution_that_somebody_else_sees(outputs):
    net = Net().conv("x", "a", 4, 3).bn("a", "y", 4).op("Relu", "a", "z")
    net.outputs = outputs
    words = "an output of the graph" if "a" in outputs else "also read by 'z_node'"
    fold_none(net.model(), "refused", "Conv 'a_node'", words)


def test_a_shared_weight_is_copied():
    net = Net().conv("x", "a", 3, 3, (1, 1)).bn("a", "n", 3)
    net.op("Conv", "n a_W a_b", "y")
    model = net.model()
    folded = fold_all(model, "Conv")
    assert [n.input[1] for n in folded.graph.node] == ["a_W_folded", "a_W"]


def test_one_batch_norm_twice():
    """The same parameters behind two convolutions, one of which cannot take them."""
    net = Net().conv("x", "a", 3, 3).bn("a", "n", 3).op("Relu", "n", "r")
    net.op(BN, ["r", "n_scale", "n_B", "n_mean", "n_var"], "y")
    folded, records = rewritten(net.model())
    assert [r.action for r in records] == ["folded", "kept"]
    same(net.model(), folded)


def test_parameters_that_callers_may_override():
    model = Net().conv("x", "a", 4, 3).bn("a", "y", 4).model()
    model.graph.input.append(helper.make_tensor_value_info("y_mean", onnx.TensorProto.DOUBLE, [4]))
    fold_none(model, "refused", "callers may override", "y_mean")
    model = Net().conv("x", "a", 4, 3).bn("a", "y", 4).model()
    model.graph.input.append(
        helper.make_tensor_value_info("a_W", onnx.TensorProto.DOUBLE, [4, 3, 3, 3])
    )
    fold_none(model, "refused", "callers may override", "weight of Conv")


def test_format_3_lists_its_constants_as_inputs():
    net = Net(8, ir_version=3).conv("x", "a", 4, 3).bn("a", "y", 4)
    folded = fold_all(net.model(), "Conv")
    names = {t.name for t in folded.graph.initializer}
    assert names == {"a_W_folded", "a_b_folded"}
    assert {i.name for i in folded.graph.input} == names | {"x"}


@pytest.mark.parametrize("name", ["W", "b"])
def test_weights_that_are_computed(name):
    net = Net().conv("x", "a", 4, 3).bn("a", "y", 4)
    net.nodes.insert(0, node("Exp", [f"a_{name}"], ["computed"], "exp"))
    net.nodes[1].input[{"W": 1, "b": 2}[name]] = "computed"
    fold_none(net.model(), "refused", "computed by Exp 'exp'")


def test_constants_in_disguise():
    net = Net().conv("x", "a", 4, 3, (1, 1)).bn("a", "y", 4)
    tensor = numpy_helper.from_array(net.arrays.pop("y_scale"))
    net.nodes.insert(0, node("Constant", [], ["y_scale"], value=tensor))
    net.nodes.insert(0, node("Identity", ["y_B"], ["same"]))
    net.nodes.insert(0, node("Transpose", ["turned"], ["a_W"], perm=[1, 0, 2, 3]))
    net.arrays["turned"] = net.arrays.pop("a_W").transpose(1, 0, 2, 3)
    net.nodes[-1].input[3] = "same"
    assert kinds(fold_all(net.model(), "Conv")) == ["Conv"]


def test_training_form():
    net = Net(13).conv("x", "a", 4, 3).bn("a", "y m v sm sv", 4)
    net.nodes[-1].input[1:] = ["y_scale", "y_B", "y_mean", "y_var"]
    for part in ("scale", "B", "mean", "var"):
        net.arrays[f"y_{part}"] = net.arrays.pop(f"y m v sm sv_{part}")
    fold_none(net.model(), "refused", "training form", "5 outputs")
    net = Net(15).conv("x", "a", 4, 3).bn("a", "y", 4, training_mode=1)
    fold_none(net.model(check=False), "refused", "training_mode=1")


def test_outputs_that_are_left_out():
    net = Net(13).conv("x", "a", 4, 3).bn("a", "y", 4)
    net.nodes[-1].output.extend(["", "", "", ""])
    fold_all(net.model(), "Conv")


def test_statistics_for_every_position():
    net = Net(7).conv("x", "a", 4, 3)
    for part in ("scale", "B", "mean", "var"):
        net.arrays[f"y_{part}"] = np.abs(numbers(4, 4, 3))
    fold_none(net.bn("a", "y", 4, spatial=0).model(), "refused", "spatial=0")


def test_broken_statistics():
    for value in (np.nan, -1.0):
        net = Net().conv("x", "a", 4, 3)
        net.arrays["y_var"] = np.array([1, value, 1, 1])
        fold_none(net.bn("a", "y", 4).model(), "refused", "running_var + eps")


def test_other_domains_are_left_alone():
    net = Net().conv("x", "a", 4, 3).bn("a", "n", 4).bn("n", "y", 4)
    net.nodes[0].domain = net.nodes[2].domain = "elsewhere"
    record = fold_none(net.model(), "kept", "elsewhere.Conv")
    assert record.name == "n_node"


def test_functions():
    net = Net().conv("x", "a", 4, 3).bn("a", "b", 4).op("inner", "b b_scale b_B b_mean b_var", "y")
    net.nodes[-1].domain = "elsewhere"
    model = net.model(check=False)
    names = ["i", "s", "b", "m", "v"]
    body = [node(BN, names, ["o"], "in")]
    opsets = [helper.make_opsetid("", 15)]
    function = helper.make_function("elsewhere", "inner", names, ["o"], body, opsets)
    model.functions.append(function)
    folded, records = rewritten(model)
    assert [r.action for r in records] == ["folded", "refused"]
    assert "inline" in records[1].reason
    assert kinds(folded) == ["Conv", "inner"]

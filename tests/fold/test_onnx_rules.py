"""What is folded into what, and what is not, on graphs of a few nodes."""

import numpy as np
import onnx
import pytest

from tests.fold.onnx_graphs import (
    BN,
    Net,
    fold_all,
    fold_none,
    kinds,
    rewritten,
    same,
)

NEWEST = onnx.defs.onnx_opset_version()


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_every_opset(opset):
    net = Net(opset, "float32").conv("x", "a", 4, 3, pads=[1, 1, 1, 1]).bn("a", "n", 4)
    net.op("Relu", "n", "y")
    folded = fold_all(net.model(), "Conv", 2e-6)
    assert kinds(folded) == ["Conv", "Relu"]


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(kind, group, space, bias):
    net = Net()
    net.inputs["x"] = (2, 4, 6, 5, 4)[: 2 + space]
    more = {
        "group": group,
        "pads": [1, 0] * space,
        "strides": [2] * space,
        "dilations": [1] * space,
    }
    if kind == "ConvTranspose":
        more["output_padding"] = [1] * space
    net.conv("x", "a", 8, 4, (3, 2, 2)[:space], bias=bias, kind=kind, **more).bn("a", "y", 8)
    assert kinds(fold_all(net.model(), kind)) == [kind]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("shape", [None, (), (1,), (7,), (1, 7), (1, 1)])
def test_gemm(transposed, shape):
    net = Net()
    net.inputs["x"] = (5, 4)
    inputs = ["x", net.array("W", *((7, 4) if transposed else (4, 7)))]
    inputs += [] if shape is None else [net.array("C", *shape)]
    net.op("Gemm", inputs, "a", alpha=0.5, beta=3.0, transB=transposed).bn("a", "y", 7)
    folded = fold_all(net.model(), "Gemm")
    assert [a.name for a in folded.graph.node[0].attribute if a.name != "transB"] == []


def test_gemm_that_ignores_its_bias():
    net = Net()
    net.inputs["x"] = (5, 4)
    inputs = ["x", net.array("W", 4, 7), net.array("C", 7)]
    fold_all(net.op("Gemm", inputs, "a", beta=0.0).bn("a", "y", 7).model(), "Gemm")


@pytest.mark.parametrize("shape", [(5, 7), (5, 1)])
def test_a_gemm_whose_bias_depends_on_the_row(shape):
    net = Net()
    net.inputs["x"] = (5, 4)
    net.op("Gemm", ["x", net.array("W", 4, 7), net.array("C", *shape)], "a").bn("a", "y", 7)
    fold_none(net.model(), "refused", "bias of Gemm", str(shape))


def test_matmul_gets_an_add():
    net = Net()
    net.inputs["x"] = (5, 4)
    net.op("MatMul", ["x", net.array("W", 4, 7)], "a").bn("a", "y", 7)
    assert kinds(fold_all(net.model(), "MatMul")) == ["MatMul", "Add"]


@pytest.mark.parametrize("op", ["Add", "Sub", "bus"])
def test_a_bias_on_the_way(op):
    net = Net()
    net.inputs["x"] = (5, 4)
    net.op("MatMul", ["x", net.array("W", 4, 7)], "a")
    inputs = ["a", net.array("c", 7)]
    net.op("Sub" if op == "bus" else op, inputs[::-1] if op == "bus" else inputs, "b").bn(
        "b", "y", 7
    )
    assert len(kinds(fold_all(net.model(), "MatMul"))) == 2


@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1)])
def test_a_bias_behind_a_convolution(shape):
    net = Net().conv("x", "a", 4, 3)
    net.op("Add", [net.array("c", *shape), "a"], "b").bn("b", "y", 4)
    assert kinds(fold_all(net.model(), "Conv")) == ["Conv", "Add"]


def test_a_map_that_is_added_is_no_bias():
    net = Net().conv("x", "a", 4, 3)
    net.op("Add", ["a", net.array("c", 4, 4, 3)], "b").bn("b", "y", 4)
    fold_none(net.model(), "refused", "not one value per channel")


def transposed_linear(length, features):
    net = Net()
    net.inputs["x"] = (2, length, 4)
    net.op("MatMul", ["x", net.array("W", 4, features)], "a")
    return net.op("Transpose", "a", "t", perm=[0, 2, 1])


def test_matmul_on_sequences():
    net = transposed_linear(6, 7).bn("t", "n", 7).op("Transpose", "n", "y", perm=[0, 2, 1])
    assert kinds(fold_all(net.model(), "MatMul")) == ["MatMul", "Add", "Transpose", "Transpose"]


def test_channels_of_another_axis_that_happens_to_be_as_long():
    """The batch norm is over the steps of a sequence; folding into the columns would be wrong."""
    net = Net()
    net.inputs["x"] = (2, 7, 4)
    net.op("MatMul", ["x", net.array("W", 4, 7)], "a").bn("a", "y", 7)
    fold_none(net.model(), "refused", "the weight of MatMul")


def test_a_linear_map_of_channels_first():
    net = Net()
    net.inputs["x"] = (2, 4, 6)
    net.op("MatMul", [net.array("W", 7, 4), "x"], "a").bn("a", "y", 7)
    assert kinds(fold_all(net.model(), "MatMul")) == ["MatMul", "Add"]


def test_an_unknown_rank():
    net = Net()
    net.inputs["x"] = (2, 7, 4)
    net.op("elsewhere", "x", "u").op("MatMul", ["u", net.array("W", 4, 7)], "a").bn("a", "y", 7)
    net.nodes[0].domain = "elsewhere"
    fold_none(net.model(), "refused", "rank")


def test_past_identity_and_dropout():
    net = Net().conv("x", "a", 4, 3).op("Identity", "a", "i").op("Dropout", "i", "d")
    fold_all(net.bn("d", "y", 4).model(), "Conv")


def test_dropout_in_training_mode():
    net = Net().conv("x", "a", 4, 3)
    net.arrays |= {"mode": np.array(True), "ratio": np.array(0.5, "float32")}
    net.op("Dropout", "a ratio mode", "d").bn("d", "y", 4)
    fold_none(net.model(), "refused", "training mode")


@pytest.mark.parametrize("group", [1, 3])
def test_into_the_convolution_behind(group):
    net = Net().bn("x", "n", 3).conv("n", "y", 6, 3, group=group, strides=[2, 1], dilations=[1, 2])
    assert kinds(fold_all(net.model(), "Conv")) == ["Conv"]


@pytest.mark.parametrize("padding", [{"pads": [0, 0, 1, 0]}, {"auto_pad": "SAME_UPPER"}])
def test_padding_behind(padding):
    net = Net().bn("x", "n", 3).conv("n", "y", 6, 3, **padding)
    record = fold_none(net.model(), "kept", "pads with zeros", "off by up to")
    assert float(record.reason.rsplit(maxsplit=1)[-1]) > 0.1
    net = Net().bn("x", "n", 3, zero_shift=True).conv("n", "y", 6, 3, **padding)
    fold_all(net.model(), "Conv")


def test_same_padding_of_a_kernel_of_one():
    net = Net().bn("x", "n", 3).conv("n", "y", 6, 3, (1, 1), auto_pad="SAME_LOWER", strides=[2, 2])
    fold_all(net.model(), "Conv")


def test_into_a_transposed_convolution_behind():
    net = Net().bn("x", "n", 3).conv("n", "y", 6, 3, (1, 1), kind="ConvTranspose", group=3)
    fold_all(net.model(), "ConvTranspose")
    for more in ({"strides": [2, 2]}, {"output_padding": [1, 0], "strides": [2, 1]}):
        net = Net().bn("x", "n", 3).conv("n", "y", 6, 3, (1, 1), kind="ConvTranspose", **more)
        fold_none(net.model(), "kept", "every position alike")
    net = Net().bn("x", "n", 3).conv("n", "y", 6, 3, (2, 2), kind="ConvTranspose")
    fold_none(net.model(), "kept", "every position alike")


@pytest.mark.parametrize("transposed", [0, 1])
def test_into_gemm_behind(transposed):
    net = Net()
    net.inputs["x"] = (5, 4)
    inputs = ["n", net.array("W", *((7, 4) if transposed else (4, 7))), net.array("C", 1, 7)]
    net.bn("x", "n", 4).op("Gemm", inputs, "y", alpha=2.0, beta=0.25, transB=transposed)
    fold_all(net.model(), "Gemm")


def test_a_gemm_that_transposes_its_input():
    net = Net()
    net.inputs["x"] = (4, 4)
    net.bn("x", "n", 4).op("Gemm", ["n", net.array("W", 4, 7), net.array("C", 7)], "y", transA=1)
    fold_none(net.model(), "refused", "takes it transposed")
    net = Net()
    net.inputs["x"] = (4, 5)
    net.op("Gemm", ["x", net.array("W", 4, 7), net.array("C", 7)], "a", transA=1).bn("a", "y", 7)
    fold_all(net.model(), "Gemm")


def test_a_value_that_multiplies_itself():
    net = Net()
    net.inputs["x"] = (4, 4)
    net.bn("x", "n", 4).op("Gemm", "n n", "y")
    fold_none(net.model(), "refused", "reads it twice")
    net = Net()
    net.inputs["x"] = (4, 4)
    net.bn("x", "n", 4).op("Gemm", [net.array("A", 5, 4), "n"], "y")
    fold_none(net.model(), "refused", "the weight of Gemm")


def test_through_flatten():
    net = Net().bn("x", "n", 3).op("Flatten", "n", "f")
    net.op("Gemm", ["f", net.array("W", 90, 4), net.array("C", 4)], "y")
    assert kinds(fold_all(net.model(), "Gemm")) == ["Flatten", "Gemm"]
    net = Net().bn("x", "n", 3).op("Flatten", "n", "f", axis=2)
    net.op("MatMul", ["f", net.array("W", 30, 4)], "y")
    fold_none(net.model(), "refused", "Flatten")


@pytest.mark.parametrize("op", [None, "Add", "Sub", "bus"])
def test_into_matmul_behind(op):
    net = Net()
    net.inputs["x"] = (5, 4)
    net.bn("x", "n", 4).op("MatMul", ["n", net.array("W", 4, 7)], "m" if op else "y")
    inputs = ["m", net.array("c", 7)]
    if op:
        net.op("Sub" if op == "bus" else op, inputs[::-1] if op == "bus" else inputs, "y")
    assert len(kinds(fold_all(net.model(), "MatMul"))) == 2


def test_into_the_batch_norm_before():
    net = Net().op("Relu", "x", "r").bn("r", "n", 3).bn("n", "m", 3).op("Sigmoid", "m", "y")
    folded, records = rewritten(net.model())
    assert [(r.action, r.side) for r in records] == [("kept", None), ("folded", "norm")]
    assert kinds(folded) == ["Relu", BN, "Sigmoid"]
    same(net.model(), folded)


def test_a_chain_of_everything():
    net = Net().conv("x", "a", 4, 3).bn("a", "b", 4).bn("b", "c", 4).conv("c", "d", 5, 4, (2, 2))
    net.bn("d", "e", 5).op("Relu", "e", "f").bn("f", "g", 5).conv("g", "y", 2, 5, (1, 1))
    folded = fold_all(net.model(), "Conv Conv Conv Conv")
    assert kinds(folded) == ["Conv", "Conv", "Relu", "Conv"]
    assert len(folded.graph.initializer) == 6

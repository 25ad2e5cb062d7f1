"""Batch norms in the branches of If and the bodies of Loop."""

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.fold.onnx_graphs import BN, Net, kinds, node, numbers, rewritten, run, same

DOUBLE = onnx.TensorProto.DOUBLE


def branch(name, *, conv=True, value="x", output=None):
    """Conv and BatchNormalization on names of the graph around."""
    output = output or f"{name}_y"
    nodes = [node("Conv", [value, "W"], [f"{name}_a"], f"{name}_conv")] if conv else []
    inside = f"{name}_a" if conv else value
    nodes.append(node(BN, [inside, "n_scale", "n_B", "n_mean", "n_var"], [output], f"{name}_norm"))
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(output, DOUBLE, None)], []
    )


def with_if(then, other):
    net = Net()
    net.array("W", 4, 3, 3, 3)
    for part in ("scale", "B", "mean"):
        net.array(f"n_{part}", 4)
    net.arrays["n_var"] = np.abs(numbers(4))
    net.op("If", "flag", "y", then_branch=then, else_branch=other)
    net.inputs = {"x": (2, 3, 6, 5), "flag": ()}
    model = net.model(check=False)
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    return model


def branches(model):
    (found,) = [n for n in model.graph.node if n.op_type == "If"]
    return {a.name: a.g for a in found.attribute}


def test_both_branches_with_weights_from_outside():
    model = with_if(branch("then"), branch("else", output="other"))
    folded, records = rewritten(model)
    assert {(r.action, r.into) for r in records} == {
        ("folded", "Conv 'then_conv'"),
        ("folded", "Conv 'else_conv'"),
    }
    assert all(r.graph.startswith("/y_node.") for r in records)
    for graph in branches(folded).values():
        assert [n.op_type for n in graph.node] == ["Conv"]
        assert len(graph.initializer) == 2
    assert not folded.graph.initializer
    for flag in (True, False):
        same(model, folded, flag=np.array(flag))


def test_branches_that_use_the_same_names():
    model = with_if(branch("part"), branch("part"))
    folded, records = rewritten(model)
    assert [r.action for r in records] == ["folded", "folded"]
    for flag in (True, False):
        same(model, folded, flag=np.array(flag))


def test_a_convolution_outside_of_the_branch():
    then, other = branch("then", conv=False, value="c"), branch("else", conv=False, value="c")
    model = with_if(then, other)
    model.graph.node.insert(0, node("Conv", ["x", "W"], ["c"], "conv"))
    folded, records = rewritten(model)
    assert [r.action for r in records] == ["refused", "refused"]
    assert all("outside of its branch" in r.reason for r in records)
    assert folded.SerializeToString() == model.SerializeToString()


def test_a_value_that_a_branch_reads():
    """The convolution feeds a batch norm and, unseen in its own graph, a branch."""
    net = Net().conv("x", "a", 4, 3).bn("a", "n", 4)
    then, other = (
        helper.make_graph(
            [node(op, ["a"], [op], op)], op, [], [helper.make_tensor_value_info(op, DOUBLE, None)]
        )
        for op in ("Relu", "Sigmoid")
    )
    net.op("If", "flag", "i", then_branch=then, else_branch=other).op("Add", "n i", "y")
    net.inputs = {"x": (2, 3, 6, 5), "flag": ()}
    model = net.model(check=False)
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    _, (record,) = rewritten(model)
    assert record.action == "refused"
    assert "also read by" in record.reason


@pytest.mark.parametrize("trips", [0, 3])
def test_the_body_of_a_loop(trips):
    values = [
        helper.make_tensor_value_info(n, k, s)
        for n, k, s in (
            ("i", onnx.TensorProto.INT64, ()),
            ("go", onnx.TensorProto.BOOL, ()),
            ("state", DOUBLE, (2, 3, 6, 5)),
        )
    ]
    outputs = [
        helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, ()),
        helper.make_tensor_value_info("next", DOUBLE, (2, 3, 6, 5)),
    ]
    nodes = [
        node("Identity", ["go"], ["go_on"]),
        node("Conv", ["state", "a_W", "a_b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        node(BN, ["c", "y_scale", "y_B", "y_mean", "y_var"], ["next"], "norm"),
    ]
    body = helper.make_graph(nodes, "body", values, outputs)
    net = Net().conv("x", "a", 3, 3).bn("a", "y", 3)
    net.nodes = []
    net.arrays |= {"trips": np.array(trips), "true": np.array(True)}
    net.op("Loop", ["trips", "true", "x"], "y", body=body)
    model = net.model()
    folded, records = rewritten(model)
    assert [(r.action, r.into) for r in records] == [("folded", "Conv 'conv'")]
    assert BN not in str(folded.graph.node[0])
    same(model, folded)


def test_a_value_that_the_loop_carries_is_no_constant():
    """The scale is handed on from step to step; only its first value is an initialiser."""
    values = [
        helper.make_tensor_value_info(n, k, s)
        for n, k, s in (
            ("i", onnx.TensorProto.INT64, ()),
            ("go", onnx.TensorProto.BOOL, ()),
            ("state", DOUBLE, (2, 3, 6, 5)),
            ("scale", DOUBLE, (3,)),
        )
    ]
    outputs = [
        helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, ()),
        helper.make_tensor_value_info("next", DOUBLE, (2, 3, 6, 5)),
        helper.make_tensor_value_info("twice", DOUBLE, (3,)),
    ]
    nodes = [
        node("Identity", ["go"], ["go_on"]),
        node("Conv", ["state", "a_W"], ["c"], "conv", pads=[1, 1, 1, 1]),
        node(BN, ["c", "scale", "y_B", "y_mean", "y_var"], ["next"], "norm"),
        node("Add", ["scale", "scale"], ["twice"]),
    ]
    net = Net().conv("x", "a", 3, 3).bn("a", "y", 3)
    net.nodes = []
    net.arrays |= {"trips": np.array(2), "true": np.array(True)}
    net.op(
        "Loop",
        ["trips", "true", "x", "y_scale"],
        "y last",
        body=helper.make_graph(nodes, "body", values, outputs),
    )
    folded, (record,) = rewritten(net.model())
    assert record.action == "refused"
    assert "'scale') is an input of the graph" in record.reason
    assert kinds(folded) == ["Loop"]
    assert np.isfinite(run(folded)[0]).all()

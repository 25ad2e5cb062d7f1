"""ONNX graphs for the tests of folding, in float64 so that a wrong formula has nowhere to hide."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnkit.fold.onnx.call import rewrite
from bnkit.fold.onnx.engines import reference_engine
from bnkit.fold.onnx.process import Limits
from tests.tolerances import FLOAT64, relative_error

BN = "BatchNormalization"
node = helper.make_node


def numbers(*shape, seed=0, low=0.5):
    """Values of both signs, none of them near zero."""
    generator = np.random.default_rng([seed, *shape])
    return generator.uniform(low, 1.5, shape) * generator.choice([-1.0, 1.0], shape)


class Net:
    """A graph under construction; names of arrays are made from that of their node."""

    def __init__(self, opset=15, dtype="float64", ir_version=None):
        self.opset, self.dtype = opset, np.dtype(dtype) if dtype != "bfloat16" else dtype
        self.ir_version = ir_version or helper.find_min_ir_version_for(
            [helper.make_opsetid("", opset)], ignore_unknown=True
        )
        self.nodes, self.arrays = [], {}
        self.inputs, self.outputs = {"x": (2, 3, 6, 5)}, ["y"]
        self.seed = 0

    def array(self, name, *shape, low=0.5):
        self.seed += 1
        self.arrays.setdefault(name, numbers(*shape, seed=self.seed, low=low))
        return name

    def op(self, kind, inputs, output, **attributes):
        inputs = inputs.split() if isinstance(inputs, str) else inputs
        self.nodes.append(node(kind, inputs, output.split(), f"{output}_node", **attributes))
        return self

    def bn(self, value, output, channels, *, zero_shift=False, **attributes):
        names = [f"{output}_{k}" for k in ("scale", "B", "mean", "var")]
        for name in names[:3]:
            self.array(name, channels)
        self.arrays.setdefault(names[3], np.abs(numbers(channels, seed=99)))
        if zero_shift:
            self.arrays[names[1]] = self.arrays[names[2]] = np.zeros(channels)
        if self.opset < 9:
            attributes.setdefault("spatial", 1)
        return self.op(BN, [value, *names], output, **attributes)

    def conv(self, value, output, out, inside, kernel=(3, 3), *, bias=True, kind="Conv", **more):
        group = more.get("group", 1)
        shape = (out, inside // group) if kind == "Conv" else (inside, out // group)
        inputs = [value, self.array(f"{output}_W", *shape, *kernel)]
        if bias:
            inputs.append(self.array(f"{output}_b", out))
        return self.op(kind, inputs, output, **more)

    def model(self, *, check=True):
        kind = onnx.TensorProto.BFLOAT16 if self.dtype == "bfloat16" else None
        kind = kind or helper.np_dtype_to_tensor_dtype(self.dtype)
        stored = helper.tensor_dtype_to_np_dtype(kind)
        tensors = [
            numpy_helper.from_array(a.astype(stored) if a.dtype == np.float64 else a, n)
            for n, a in self.arrays.items()
        ]
        inputs = [helper.make_tensor_value_info(n, kind, s) for n, s in self.inputs.items()]
        if self.ir_version < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
        outputs = [helper.make_tensor_value_info(n, kind, None) for n in self.outputs]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, tensors)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("elsewhere", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
        for output, shaped in zip(model.graph.output, inferred, strict=True):
            output.type.CopyFrom(shaped.type)
            output.type.tensor_type.shape.SetInParent()
        if check:
            onnx.checker.check_model(model)
        return model


def run(model, **inputs):
    """The outputs, by the reference evaluator."""
    found = {
        v.name: v
        for v in model.graph.input
        if v.name not in {t.name for t in model.graph.initializer}
    }
    for name, value in found.items():
        if name not in inputs:
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            inputs[name] = numbers(*shape, seed=5).astype(dtype)
    return reference_engine()[1](model.SerializeToString())(inputs)


def rewritten(model):
    """The folded model and its records, checked, without a process for shapes."""
    before = model.SerializeToString()
    shapes = onnx.shape_inference.infer_shapes(model)
    folded, records = rewrite(model, Limits(), shapes)
    assert model.SerializeToString() == before
    onnx.checker.check_model(folded)
    assert [o.name for o in folded.graph.output] == [o.name for o in model.graph.output]
    return folded, records


def kinds(model):
    return [n.op_type for n in model.graph.node]


def fold_all(model, into, tolerance=FLOAT64, **inputs):
    """Fold, expect every batch norm gone into nodes of these kinds, and the same output."""
    folded, records = rewritten(model)
    assert [(r.action, r.into.split()[0]) for r in records] == [("folded", k) for k in into.split()]
    assert BN not in kinds(folded)
    same(model, folded, tolerance, **inputs)
    return folded


def fold_none(model, action, *words):
    """Expect the only batch norm to stay, for a reason that holds these words."""
    folded, records = rewritten(model)
    (record,) = records
    assert record.action == action, record
    assert all(w in record.reason for w in words), record.reason
    assert kinds(folded) == kinds(model)
    return record


def same(model, folded, tolerance=FLOAT64, **inputs):
    for expected, got in zip(run(model, **inputs), run(folded, **inputs), strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert relative_error(got, expected) < tolerance
        assert np.abs(expected.astype(float)).max() > 0.1

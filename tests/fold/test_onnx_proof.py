"""The proof can fail, says on what, and is only claimed where something was compared."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnkit.core import BatchNormError, FoldError, InputError
from bnkit.fold.onnx import OnnxFolding, call, fold_onnx
from bnkit.fold.onnx.call import rewrite
from bnkit.fold.onnx.inputs import make_up
from bnkit.fold.onnx.process import Limits, Trial
from bnkit.fold.onnx.proof import prove
from bnkit.fold.onnx.stress import stressed
from bnkit.fold.onnx.widening import widened
from tests.fold.onnx_graphs import Net, numbers

LIMITS = Limits(seconds=60)


def small(dtype="float32"):
    return Net(dtype=dtype).conv("x", "a", 4, 3, pads=[1] * 4).bn("a", "n", 4).op("Relu", "n", "y")


def models(model):
    wide = widened(model)
    return {
        "original": model,
        "folded": rewrite(model, LIMITS)[0],
        "wide": wide,
        "wide_folded": rewrite(wide, LIMITS)[0],
    }


def spoil(model, factor):
    (tensor,) = [t for t in model.graph.initializer if t.name == "a_W_folded"]
    values = numpy_helper.to_array(tensor) * tensor_type(tensor)(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def tensor_type(tensor):
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).type


def check(found, tolerance=None):
    trial = Trial(make_up(found["original"]), "made-up inputs", ["reference"])
    return prove(found, trial, LIMITS, tolerance=tolerance, name="net")


def test_a_good_folding():
    proof = check(models(small().model()))
    assert proof.holds
    assert len(proof.checks) == len(proof.checks64) == len(list(stressed({})))
    assert proof.engine.startswith("onnx.reference")
    assert 0 < proof.relative_error <= 2e-6
    assert 0 < proof.noise < 1e-6
    assert proof.relative_error64 < 1e-12


@pytest.mark.parametrize("which", ["folded", "wide_folded"])
def test_weights_that_are_slightly_wrong(which):
    """Each comparison sees what the other does not: rounding, and the algebra."""
    found = models(small().model())
    spoil(found[which], 1 + 1e-5 if which == "folded" else 1 + 1e-9)
    with pytest.raises(FoldError, match=r"'?net'?: expected the folded .* relative error of .*e-"):
        check(found)


def test_a_model_that_is_too_large_for_float64(monkeypatch):
    monkeypatch.setattr(call, "_LARGEST_WIDENED", 100)
    proof = fold_onnx(small().model(), engine="reference").proof
    assert proof.holds
    assert proof.relative_error64 is None
    assert "too large" in proof.note64


def test_a_tolerance_of_the_caller():
    found = models(small().model())
    spoil(found["folded"], 1.001)
    assert check(found, tolerance=1e-2).relative_error > 1e-4
    with pytest.raises(FoldError, match="to 0 relative, got a relative error"):
        fold_onnx(small().model(), tolerance=0.0, engine="reference")


def test_a_folded_model_that_is_invalid_or_has_another_shape():
    found = models(small().model())
    found["folded"].graph.node[0].input[0] = "nowhere"
    with pytest.raises(FoldError, match=r"the folded model fails .*nowhere"):
        check(found)
    found = models(small().model())
    found["folded"].graph.node[0].attribute[0].ints[:] = [2, 2, 2, 2]
    with pytest.raises(FoldError, match="differ by more than a rounding"):
        check(found)


def test_an_original_that_gives_no_numbers():
    net = small().op("Log", "z", "unused")
    net.nodes.pop()
    net.op("Mul", ["y", net.array("huge", 1)], "w")
    net.arrays["huge"][:] = np.nan
    net.outputs = ["w"]
    with pytest.raises(FoldError, match="NaN or infinity on all"):
        fold_onnx(net.model(), engine="reference")


def test_overflow_on_some_inputs_is_passed_over():
    net = small("float16")
    net.inputs["x"] = (1, 3, 6, 5)
    net.op("Exp", "y", "z").outputs = ["z"]
    folding = fold_onnx(net.model(), engine="reference")
    assert not all(c.compared for c in folding.proof.checks)
    assert any(c.compared for c in folding.proof.checks)
    assert folding.proof.tolerance == 4e-3


def test_an_original_that_changes_from_run_to_run():
    net = small().op("RandomNormalLike", "y", "z").op("Add", "y z", "w")
    net.outputs = ["w"]
    with pytest.raises(InputError, match="changes from run to run"):
        fold_onnx(net.model(), engine="reference")


def test_an_original_that_cannot_be_run():
    net = small().op("elsewhere", "y", "z")
    net.nodes[-1].domain = "elsewhere"
    net.outputs = ["z"]
    with pytest.raises(InputError, match=r"expected a model that can be run.*inputs="):
        fold_onnx(net.model(), engine="reference")


def test_open_sizes_are_tried():
    """Flatten and Gemm fix the size of the image, though the model does not declare it."""
    net = Net(dtype="float32").conv("x", "a", 4, 3, (1, 1)).bn("a", "n", 4).op("Flatten", "n", "f")
    net.op("Gemm", ["f", net.array("W", 4 * 32 * 32, 2)], "y")
    net.inputs["x"] = ("batch", 3, "height", "width")
    assert fold_onnx(net.model(), engine="reference").proof.holds


def test_given_inputs():
    model = small().model()
    given = numbers(2, 3, 6, 5).astype("float32")
    folding = fold_onnx(model, inputs=[{"x": given}, {"x": given * 2}], engine="reference")
    assert {c.inputs for c in folding.proof.checks} > {"given inputs", "given inputs zeros"}
    assert len(folding.proof.checks) == 12


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"z": np.zeros((2, 3, 6, 5), "float32")}, r"expected \['x'\], got \['z'\]"),
        ({"x": np.zeros((2, 3, 6, 5))}, "expected float32, got float64"),
        ({"x": np.zeros((2, 3, 6), "float32")}, r"expected the shape \(2, 3, 6, 5\)"),
        ({"x": np.zeros((2, 4, 6, 5), "float32")}, r"got \(2, 4, 6, 5\)"),
        ([], "expected a dictionary"),
        (3, "expected a dictionary"),
    ],
)
def test_inputs_that_do_not_fit(inputs, words):
    with pytest.raises(InputError, match=words):
        fold_onnx(small().model(), inputs=inputs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tolerance": -1.0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"engine": "tensorrt"}, r"'onnxruntime', 'reference'"),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    with pytest.raises(InputError, match=words):
        fold_onnx(small().model(), **arguments)


def test_the_result():
    folding = fold_onnx(small().model(), engine="reference")
    assert isinstance(folding, OnnxFolding)
    document = json.loads(json.dumps(folding.to_dict(), allow_nan=False))
    assert document["counts"] == {"folded": 1, "kept": 0, "refused": 0}
    assert document["records"][0]["into"] == "Conv 'a_node'"
    assert document["proof"]["holds"] is True
    text = str(folding)
    assert text.startswith("1 of 1 batch norms folded; relative error ")
    assert "n_node: folded into Conv 'a_node' before it" in text
    with pytest.raises(AttributeError):
        folding.model = None


def test_the_process_imports_no_torch(monkeypatch):
    """The start of a process is half of the time that a small model takes."""
    from bnkit.fold.onnx import process

    seen = process._START + "\nassert 'torch' not in sys.modules, 'torch was imported'\n"
    monkeypatch.setattr(process, "_START", seen)
    assert fold_onnx(small().model(), engine="reference").proof.holds


def test_without_the_package(monkeypatch):
    import sys

    for name in [n for n in sys.modules if n.startswith("bnkit.fold.onnx.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BatchNormError, match=r"Install bnkit\[onnx\]"):
        fold_onnx("net.onnx")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_given_inputs_that_are_not_finite_prove_nothing(value):
    given = make_up(small().model())[0][0]
    assert fold_onnx(small().model(), inputs=given, engine="reference").proof.holds
    bad = {name: np.full_like(array, value) for name, array in given.items()}
    for inputs in (bad, [given, bad]):
        with pytest.raises(FoldError, match="finite outputs on the given inputs"):
            fold_onnx(small().model(), inputs=inputs, engine="reference")

"""ONNX Runtime against the preset, in inference and in training mode."""

import numpy as np
import pytest

from bnkit.core import ONNX, TORCH
from tests.frameworks.onnx_model import BatchNormModel, one_node
from tests.frameworks.step import make_batch
from tests.tolerances import FLOAT64, FRAMEWORK, dtype_tolerance, relative_error

pytestmark = pytest.mark.frameworks
ort = pytest.importorskip("onnxruntime", reason="`make test-frameworks` installs ONNX Runtime")
numpy_helper = pytest.importorskip("onnx.numpy_helper")

THREE = ("y", "running_mean", "running_var")
FIVE = (*THREE, "saved_mean", "saved_var")
SHAPES = {"2d": (16, 5), "3d": (8, 5, 7), "4d": (4, 5, 6, 3), "5d": (2, 5, 3, 4, 3)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


def arrays(shape, dtype="float32"):
    batch = make_batch(shape, 1, dtype=dtype)
    values = (batch.x, batch.weight, batch.bias, batch.mean, batch.var)
    return dict(zip(("x", "scale", "bias", "mean", "var"), values, strict=True))


OFF, ALL = (
    getattr(ort.GraphOptimizationLevel, f"ORT_{level}_ALL") for level in ("DISABLE", "ENABLE")
)


def run(model, data, optimizations=OFF):
    options = ort.SessionOptions()
    options.graph_optimization_level = optimizations
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, data)


def errors(model, data, spec=ONNX):
    got, expected = BatchNormModel(model, spec).run(list(data.values())), run(model, data)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == e.dtype
    return [relative_error(g, e) for g, e in zip(got, expected, strict=True)]


@each_shape
@pytest.mark.parametrize("opset", [7, 8, 9, 14, 15])
@pytest.mark.parametrize("attributes", [{}, {"epsilon": 0.3}], ids=["defaults", "epsilon"])
def test_inference(shape, opset, attributes):
    data = arrays(shape)
    assert max(errors(one_node(opset, data, **attributes), data)) < FRAMEWORK


@each_shape
@pytest.mark.parametrize("opset", [14, 15])
@pytest.mark.parametrize(
    "attributes",
    [{}, {"momentum": 0.5}, {"momentum": 0.0}, {"momentum": 0.99, "epsilon": 0.3}],
    ids=["defaults", "momentum 0.5", "momentum 0", "both"],
)
def test_training_step(shape, opset, attributes):
    data = arrays(shape)
    model = one_node(opset, data, THREE, training_mode=1, **attributes)
    assert max(errors(model, data)) < FRAMEWORK


@each_shape
def test_five_outputs_of_opset_9(shape):
    data = arrays(shape)
    model = one_node(9, data, FIVE)
    got, expected = list(BatchNormModel(model).run(list(data.values()))), run(model, data)
    got[4] = 1 / np.sqrt(got[4] + ONNX.eps)  # what ONNX Runtime gives for saved_var
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < FRAMEWORK


@pytest.mark.parametrize("opset", [9, 15])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_inference_in_other_dtypes(opset, dtype):
    data = arrays((4, 5, 6), dtype)
    assert max(errors(one_node(opset, data), data)) < dtype_tolerance(dtype)


def test_training_in_float64():
    data = arrays((16, 5), "float64")
    y, mean, var = errors(one_node(15, data, THREE, training_mode=1), data)
    assert y < FLOAT64
    assert max(mean, var) < FRAMEWORK  # momentum is a float32 attribute


@pytest.mark.parametrize("wrong", ["torch", "direction", "epsilon"])
def test_a_wrong_specification_misses_by_far(wrong):
    data = arrays((16, 5))
    model = one_node(15, data, THREE, training_mode=1, momentum=0.8)
    other = {
        "direction": one_node(15, data, THREE, training_mode=1, momentum=0.2),
        "epsilon": one_node(15, data, THREE, training_mode=1, momentum=0.8, epsilon=1e-3),
    }.get(wrong, model)
    got = BatchNormModel(other, TORCH if wrong == "torch" else ONNX).run(list(data.values()))
    found = [relative_error(g, e) for g, e in zip(got, run(model, data), strict=True)]
    assert max(found) > 20 * FRAMEWORK, found


def test_one_value_per_channel():
    data = arrays((1, 5))
    model = one_node(15, data, THREE, training_mode=1)
    assert max(errors(model, data)) < FRAMEWORK
    _, _, var = run(model, data)
    assert relative_error(var, 0.9 * data["var"]) < FRAMEWORK


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_empty_batch_destroys_the_statistics():
    data = arrays((0, 5))
    model = one_node(15, data, THREE, training_mode=1)
    for y, mean, var in (run(model, data), BatchNormModel(model).run(list(data.values()))):
        assert y.shape == (0, 5)
        assert np.isnan(mean).all()
        assert np.isnan(var).all()


def test_optimizations_break_the_training_mode_of_onnxruntime():
    """Equal constants are merged, and the running variance is then written over the scale.

    Should this fail one day, ONNX Runtime was mended: optimizations need not be off any more.
    """
    x = make_batch((4, 5, 6), 1).x
    ones, zeros = np.ones(5, "float32"), np.zeros(5, "float32")
    data = {"x": x, "scale": ones, "bias": zeros, "mean": zeros, "var": ones}
    model = one_node(15, data, THREE, training_mode=1, momentum=0.5)
    del model.graph.input[1:], model.graph.output[1:]
    constants = (numpy_helper.from_array(data[key], key) for key in list(data)[1:])
    model.graph.initializer.extend(constants)
    y = BatchNormModel(model).run([x])[0]
    assert relative_error(y, run(model, {"x": x})[0]) < FRAMEWORK
    assert relative_error(y, run(model, {"x": x}, ALL)[0]) > 1e-2


def test_onnxruntime_has_no_batch_norm_below_opset_7():
    """Which is why opset 6 has the backend tests alone."""
    data = arrays((4, 5))
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.NotImplemented, match=r"\(6\)"):
        run(one_node(6, data, is_test=1), data)

"""ONNX's own backend tests of batch normalization, run by `bnkit.functional` on NumPy."""

import unittest
import warnings

import numpy as np
import pytest

from bnkit.core import ONNX, TORCH
from tests.frameworks.onnx_model import BatchNormModel, backend_base, one_node
from tests.tolerances import FLOAT64, FRAMEWORK, relative_error

NODE = tuple(
    f"test_batchnorm_{name}"
    for name in ("example", "epsilon", "example_training_mode", "epsilon_training_mode")
)
FROM_TORCH = tuple(
    f"test_BatchNorm{name}_eval"
    for name in ("1d_3d_input", "2d", "2d_momentum", "3d", "3d_momentum")
)
TRAINING = {name for name in NODE if name.endswith("training_mode")}
# the suite's own bound is 1e-3
BOUNDS = {name: {"rtol": FRAMEWORK, "atol": FRAMEWORK} for name in NODE + FROM_TORCH}


def backend(spec):
    class NumpyBackend(backend_base.Backend):
        prepared = 0

        @classmethod
        def supports_device(cls, device):
            return device == "CPU"

        @classmethod
        def prepare(cls, model, device="CPU", **kwargs):
            super().prepare(model, device, **kwargs)  # onnx.checker
            cls.prepared += 1
            return BatchNormModel(model, spec)

    return NumpyBackend


def run_suite(spec, **options):
    """Outcome of each batch norm case: "passed" or the traceback; and the models prepared."""
    from onnx.backend.test import BackendTest

    numpy_backend = backend(spec)
    with warnings.catch_warnings():
        # onnx computes the data of all its operators, some of which overflow
        warnings.simplefilter("ignore")
        runner = BackendTest(numpy_backend, __name__, **options)
    runner.include(r"^test_batchnorm_.*").include(r"^test_BatchNorm.*")
    outcomes = {}
    for test in _flat(runner.test_suite):
        result = unittest.TestResult()
        test.run(result)
        if result.skipped:
            continue
        bad = [text for _, text in result.failures + result.errors]
        outcomes[test.id().rpartition(".")[2].removesuffix("_cpu")] = bad[0] if bad else "passed"
    return outcomes, numpy_backend.prepared


def _flat(suite):
    for test in suite:
        yield from _flat(test) if isinstance(test, unittest.TestSuite) else (test,)


@pytest.fixture(scope="module")
def outcomes():
    return run_suite(ONNX, test_kwargs=BOUNDS)


def test_every_case_of_the_suite_ran(outcomes):
    by_name, prepared = outcomes
    # equality, not inclusion: a case that a later onnx adds has to be looked at
    assert set(by_name) == set(NODE + FROM_TORCH)
    assert prepared == len(by_name) == 9


@pytest.mark.parametrize("name", NODE + FROM_TORCH)
def test_backend_case(outcomes, name):
    assert outcomes[0][name] == "passed"


def test_the_training_cases_fail_with_the_variance_of_torch():
    by_name, _ = run_suite(TORCH)
    assert {name for name, outcome in by_name.items() if outcome != "passed"} == TRAINING


def arrays(shape, spatial=True, dtype=np.float64):
    rng = np.random.default_rng(0)
    flat = shape[1:2] if spatial else shape[1:]
    return {
        "x": (3 + 2 * rng.standard_normal(shape)).astype(dtype),
        "scale": rng.uniform(0.5, 2, flat).astype(dtype),
        "bias": rng.standard_normal(flat).astype(dtype),
        "mean": rng.standard_normal(flat).astype(dtype),
        "var": rng.uniform(0.5, 2, flat).astype(dtype),
    }


FIVE = ("y", "m", "v", "saved_mean", "saved_var")
THREE = ("y", "m", "v")
# opset, outputs, attributes that decide -> does it train?
MODES = [
    (6, ("y",), {"is_test": 1}, False),
    (6, FIVE, {"is_test": 0}, True),
    (6, FIVE, {}, True),
    (7, ("y",), {}, False),
    (7, FIVE, {}, True),
    (9, ("y",), {}, False),
    (9, FIVE, {}, True),
    (14, ("y",), {}, False),
    (14, THREE, {"training_mode": 1}, True),
    (15, ("y",), {"training_mode": 0}, False),
    (15, THREE, {"training_mode": 1}, True),
]


@pytest.mark.parametrize(("opset", "outputs", "attributes", "trains"), MODES)
def test_opset_decides_between_training_and_inference(opset, outputs, attributes, trains):
    data = arrays((4, 3, 5))
    model = BatchNormModel(one_node(opset, data, outputs, **attributes))
    got = model.run(list(data.values()))
    assert model.training is trains
    assert len(got) == len(outputs)
    x, scale, bias, mean, var = data.values()
    per_channel = (0, 2)
    stats = (x.mean(per_channel), x.var(per_channel)) if trains else (mean, var)
    spread = [v[:, None] for v in (*stats, scale, bias)]
    y = (x - spread[0]) / np.sqrt(spread[1] + 1e-5) * spread[2] + spread[3]
    expected = (y, 0.9 * mean + 0.1 * stats[0], 0.9 * var + 0.1 * stats[1], *stats)
    for g, e in zip(got, expected, strict=False):
        assert relative_error(g, e) < FLOAT64


def test_per_activation_statistics_of_opset_7():
    data = arrays((6, 3, 2), spatial=False)
    model = BatchNormModel(one_node(7, data, FIVE, spatial=0))
    got = model.run(list(data.values()))
    assert relative_error(got[3], data["x"].mean(0)) < FLOAT64
    assert relative_error(got[4], data["x"].var(0)) < FLOAT64
    assert relative_error(got[1], 0.9 * data["mean"] + 0.1 * data["x"].mean(0)) < FLOAT64


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
@pytest.mark.parametrize("momentum", [0.9, 0.3])
def test_reference_of_onnx_from_opset_14_on(shape, momentum):
    from onnx.reference import ReferenceEvaluator

    data = arrays(shape, dtype=np.float32)
    model = one_node(15, data, THREE, training_mode=1, momentum=momentum, epsilon=1e-3)
    expected = ReferenceEvaluator(model).run(None, data)
    got = BatchNormModel(model).run(list(data.values()))
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == e.dtype
        assert relative_error(g, e) < FRAMEWORK

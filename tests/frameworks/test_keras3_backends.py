"""Keras 3 on its TensorFlow and JAX backends, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from bnkit.core import KERAS3, moments
from tests.frameworks.step import Step, agree, infer, make_batch, misses, train
from tests.tolerances import FRAMEWORK, relative_error

pytestmark = pytest.mark.frameworks

# Keras reads its backend once per process
SCRIPT = """
import sys
import keras
import numpy as np

given = np.load(sys.argv[1])
stored = {}
for name in ("2d", "4d", "large"):
    x = given[name + " x"]
    layer = keras.layers.BatchNormalization(momentum=0.0 if name == "large" else 0.99)
    layer.build(x.shape)
    if name != "large":
        for key in ("gamma", "beta", "moving_mean", "moving_variance"):
            getattr(layer, key).assign(given[name + " " + key])
    stored[name + " infer"] = keras.ops.convert_to_numpy(layer(x, training=False))
    stored[name + " y"] = keras.ops.convert_to_numpy(layer(x, training=True))
    stored[name + " mean"] = keras.ops.convert_to_numpy(layer.moving_mean)
    stored[name + " var"] = keras.ops.convert_to_numpy(layer.moving_variance)
np.savez(sys.argv[2], backend=keras.backend.backend(), **stored)
"""
BATCHES = {"2d": make_batch((16, 5)), "4d": make_batch((4, 6, 5, 3))}
LARGE = (1000 + np.random.default_rng(0).uniform(-0.1, 0.1, (256, 8))).astype("float32")


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def outcome(request, tmp_path_factory):
    for needed in ("keras", request.param):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"`make test-frameworks` installs {needed}")
    folder = tmp_path_factory.mktemp(request.param)
    given = {"large x": LARGE}
    for name, b in BATCHES.items():
        values = {"x": b.x, "gamma": b.weight, "beta": b.bias, "moving_mean": b.mean}
        values["moving_variance"] = b.var
        given |= {f"{name} {key}": value for key, value in values.items()}
    np.savez(folder / "given.npz", **given)
    command = [sys.executable, "-c", SCRIPT, folder / "given.npz", folder / "out.npz"]
    done = subprocess.run(
        command, env=os.environ | {"KERAS_BACKEND": request.param}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = np.load(folder / "out.npz")
    assert str(out["backend"]) == request.param
    return out


@pytest.mark.parametrize("name", BATCHES)
def test_training_step_and_inference(outcome, name):
    batch = BATCHES[name]
    expected = Step(*(outcome[f"{name} {key}"] for key in ("y", "mean", "var")))
    agree(train(batch, KERAS3), expected, batch, FRAMEWORK)
    assert relative_error(infer(batch, KERAS3), outcome[f"{name} infer"]) < FRAMEWORK
    wrong = batch._replace(bias=batch.bias + np.float32(1e-3))
    assert misses(train(wrong, KERAS3), expected, batch)["y"] > 10 * FRAMEWORK


def test_large_mean_is_right_on_these_backends(outcome):
    """Only the torch backend computes E[x^2] - E[x]^2."""
    assert np.abs(moments(LARGE, (0,)).var() / outcome["large var"] - 1).max() < 1e-4

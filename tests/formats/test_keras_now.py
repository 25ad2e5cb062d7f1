"""Files that the installed Keras writes."""

import os

import numpy as np
import pytest

from bnkit.formats import read

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, at import
keras = pytest.importorskip("keras", reason="Keras 3 is in the dependency group `test`")

VALUES = ("gamma", "beta", "moving_mean", "moving_variance")
ROLES = ("weight", "bias", "running_mean", "running_var")


def network(dtype):
    inner = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.BatchNormalization(epsilon=0.1, name="norm")],
        name="inner",
    )
    layers = [
        keras.layers.Input((3,)),
        keras.layers.Dense(4, name="first"),
        inner,
        keras.layers.BatchNormalization(momentum=0.8, scale=False, dtype=dtype, name="norm"),
    ]
    model = keras.Sequential(layers, name="outer")
    chance = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(chance.normal(size=variable.shape))
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5"])
@pytest.mark.filterwarnings("ignore:.*__array__ implementation:DeprecationWarning")  # of Keras
def test_batch_norms(name, dtype, tmp_path):
    model = network(dtype)
    save = model.save_weights if name == "model.weights.h5" else model.save
    save(tmp_path / name)
    checkpoint = read(tmp_path / name)
    entries = {entry.name: entry for entry in checkpoint.batch_norms}
    assert set(entries) == {"inner/norm", "norm"}
    layers = {"inner/norm": model.get_layer("inner").layers[0], "norm": model.layers[-1]}
    for path, layer in layers.items():
        entry = entries[path]
        for value, role in zip(VALUES, ROLES, strict=True):
            variable = getattr(layer, value)
            if variable is None or role not in entry.tensors:
                assert role in ("weight", "bias")
                continue
            stored = entry.tensors[role]
            wanted = variable.value.detach().float().numpy()
            np.testing.assert_array_equal(checkpoint[stored].astype(np.float32), wanted)
            assert checkpoint.dtypes[stored] == keras.backend.standardize_dtype(variable.dtype)
        if name != "model.weights.h5":
            assert entry.eps == layer.epsilon
            assert entry.ema_weight == 1 - layer.momentum
            assert set(entry.tensors) == {
                role
                for value, role in zip(VALUES, ROLES, strict=True)
                if getattr(layer, value) is not None
            }

"""The presets against numbers that the real frameworks wrote: one training step and inference."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bnkit.core import RunningStats, preset
from bnkit.functional import batch_norm_backward, batch_norm_eval, batch_norm_train
from tests.tolerances import FRAMEWORK, relative_error

GOLDEN = Path(__file__).parents[1] / "golden" / "frameworks"
CASES = json.loads((GOLDEN / "cases.json").read_text())


def preset_name(case: dict) -> str:
    fused = "fused" if case["resolved"]["fused"] else "unfused"
    if case["framework"] == "tensorflow":
        if case["version"].startswith("2"):
            return f"tf-keras2-{fused}"
        return "contrib" if "contrib" in case["api"] else f"tf-layers-{fused}"
    if case["framework"] == "equinox":
        return "equinox-ema" if case["resolved"]["rule"] == "equinox_ema" else "equinox-batch"
    return "keras3" if case["framework"] == "keras" else case["framework"]


def spec_of(case: dict):
    """The preset, with the arguments of the layer; what the preset claims is not overridden."""
    spec = preset(preset_name(case)).spec
    keep, rule = case["resolved"]["keep"], case["resolved"]["rule"]
    spec = replace(spec, eps=case["resolved"]["epsilon"])
    spec = replace(spec, ema_weight=None if rule == "cumulative" else 1 - keep)
    if rule == "zero_debias_mean":
        spec = replace(spec, debias="mean")
    if case["resolved"].get("fix_gamma"):
        spec = replace(spec, weight_fixed=True)
    if case["framework"] == "tensorflow" and "contrib" in case["api"]:
        unfused = not case["resolved"]["fused"]
        spec = replace(spec, running_correction=0, min_eps=0.0) if unfused else spec
    return spec


class Layer:
    """One stored layer: its tensors as bnkit's, and back."""

    def __init__(self, name: str):
        self.case = CASES[name]
        self.z = np.load(GOLDEN / f"{name}.npz")
        self.spec = spec_of(self.case)
        axis = self.case["resolved"]["axis"]
        self.axis = tuple(axis) if len(axis) > 1 else axis[0]
        shape = self.z["x"].shape
        self.shape = tuple(shape[a] for a in axis)

    def get(self, key: str):
        return self.z[key].reshape(self.shape) if key in self.z.files else None

    def state(self, when: str) -> RunningStats:
        mean, var = self.get(f"{when}_moving_mean"), self.get(f"{when}_moving_variance")
        rule, keep = self.case["resolved"]["rule"], self.case["resolved"]["keep"]
        scalar = {
            k: float(self.z[f"{when}_{k}"].reshape(()))
            for k in (
                "counter",
                "mean_counter",
                "moving_mean_local_step",
                "statistics_factor",
                "num_batches_tracked",
                "first_time",
            )
            if f"{when}_{k}" in self.z.files
        }
        if rule == "haiku":
            hidden = self.get(f"{when}_mean_hidden"), self.get(f"{when}_variance_hidden")
            t = scalar["mean_counter"]
            return RunningStats(*hidden, int(t), 1 - keep**t)
        if rule == "equinox_batch":
            return RunningStats(mean, var, int(scalar["counter"]), 1 - keep ** scalar["counter"])
        if rule == "caffe":
            return RunningStats(
                mean * (1 - keep), var * (1 - keep), 1, scalar["statistics_factor"] * (1 - keep)
            )
        if rule == "zero_debias_mean":
            t = scalar["moving_mean_local_step"]
            return RunningStats(self.get(f"{when}_moving_mean_biased"), var, int(t), 1 - keep**t)
        batches = scalar.get("num_batches_tracked", 1)
        if "first_time" in scalar:
            batches = 0 if scalar["first_time"] else 1
        return RunningStats(mean, var, int(batches), 1.0)

    def weights(self):
        mask = self.z["train_mask"] if "train_mask" in self.z.files else None
        if mask is None:
            return None
        x = self.z["train_x"]
        return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(CASES))
def test_inference(name):
    layer = Layer(name)
    y = batch_norm_eval(
        layer.z["x"],
        layer.get("before_gamma"),
        layer.get("before_beta"),
        layer.state("before"),
        layer.spec,
        channel_axis=layer.axis,
    )
    assert relative_error(y, layer.z["y_eval"]) < FRAMEWORK


@pytest.mark.parametrize(
    "name", [n for n in sorted(CASES) if "train_y" in np.load(GOLDEN / f"{n}.npz")]
)
def test_training_step(name):
    layer = Layer(name)
    got = batch_norm_train(
        layer.z["train_x"],
        layer.get("before_gamma"),
        layer.get("before_beta"),
        layer.state("before"),
        layer.spec,
        channel_axis=layer.axis,
        sample_weights=layer.weights(),
    )
    assert relative_error(got.y, layer.z["train_y"]) < FRAMEWORK
    after = layer.state("after")
    assert relative_error(got.state.mean, after.mean) < FRAMEWORK
    assert relative_error(got.state.var, after.var) < FRAMEWORK
    if "train_dx" not in layer.z.files:
        return
    grads = batch_norm_backward(layer.z["train_dy"], got.saved)
    dy = layer.z["train_dy"]
    # a gradient is a difference of sums of dy: judged against dy where it nearly cancels
    assert np.abs(grads.x - layer.z["train_dx"]).max() < FRAMEWORK * max(
        np.abs(layer.z["train_dx"]).max(), np.abs(dy).max()
    )
    for key, grad in (("train_dgamma", grads.weight), ("train_dbeta", grads.bias)):
        if key in layer.z.files:
            expected = layer.get(key)
            assert np.abs(grad - expected).max() < FRAMEWORK * max(1, np.abs(expected).max())


def test_every_framework_preset_is_covered():
    covered = {preset_name(c) for c in CASES.values()}
    # Caffe and MXNet's operator form, CoreML and old Keras have no file to check against
    assert covered >= {
        "torch",
        "keras3",
        "flax",
        "haiku",
        "equinox-ema",
        "equinox-batch",
        "onnx",
        "paddle",
        "mxnet",
        "caffe",
        "contrib",
        "tf-layers-fused",
        "tf-layers-unfused",
        "tf-keras2-fused",
        "tf-keras2-unfused",
    }


def test_equinoxs_first_batch_takes_the_whole_gradient():
    """It replaces the statistics, so that the batch is all of what normalizes."""
    x, g = np.random.default_rng(0).normal(size=(2, 6, 3))
    first = batch_norm_train(x, spec=preset("equinox-ema").spec)
    plain = batch_norm_train(x, spec=preset("torch").spec)
    np.testing.assert_allclose(
        batch_norm_backward(g, first.saved).x, batch_norm_backward(g, plain.saved).x
    )


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tf221_single_fused", "tf-keras2-unfused"),
        ("keras3_single_4d", "tf-keras2-fused"),
        ("torch_single_bn2d", "onnx"),
        ("equinox_single_ema", "equinox-batch"),
        ("tf115_single_small_epsilon", "tf-keras2-fused"),
    ],
)
def test_these_numbers_tell_presets_apart(name, wrong):
    layer = Layer(name)
    spec = replace(preset(wrong).spec, eps=layer.spec.eps, ema_weight=layer.spec.ema_weight)
    got = batch_norm_train(
        layer.z["train_x"],
        layer.get("before_gamma"),
        layer.get("before_beta"),
        layer.state("before"),
        spec,
        channel_axis=layer.axis,
    )
    after = layer.state("after")
    errors = (
        relative_error(got.y, layer.z["train_y"]),
        relative_error(got.state.mean, after.mean),
        relative_error(got.state.var, after.var),
    )
    assert max(errors) > 10 * FRAMEWORK

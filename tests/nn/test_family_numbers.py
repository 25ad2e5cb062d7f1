"""Batch renormalization and ghost batch norm against numbers that the real frameworks wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import bnkit
from tests.tolerances import FRAMEWORK, relative_error

GOLDEN = Path(__file__).parents[1] / "golden" / "family"
CASES = json.loads((GOLDEN / "cases.json").read_text())
ROLES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "moving_stddev": "running_stddev",
    "renorm_mean": "renorm_mean",
    "renorm_stddev": "renorm_stddev",
    "renorm_mean_weight": "renorm_weight",
}


class Golden:
    def __init__(self, name):
        self.args = {
            k: v
            for k, v in CASES[name]["args"].items()
            if k not in ("training", "synchronized") and v is not None
        }
        self.version = CASES[name]["version"]
        self.z = np.load(GOLDEN / f"{name}.npz")
        self.channels = self.z["x"].shape[-1]

    def tensor(self, key):
        return torch.tensor(self.z[key])

    def layer(self, **changes):
        rule = "debiased" if self.version.startswith("1.14") else "plain"
        layer = bnkit.nn.BatchNorm.from_tf(
            self.channels, renorm_rule=rule, **{**self.args, **changes}
        )
        self.put(layer, "before")
        return layer

    def roles(self, when):
        return {ours: f"{when}_{theirs}" for theirs, ours in ROLES.items()
                if f"{when}_{theirs}" in self.z.files}  # fmt: skip

    def put(self, layer, when):
        state = {ours: self.tensor(key).reshape(getattr(layer, ours).shape)
                 for ours, key in self.roles(when).items()}  # fmt: skip
        state["num_batches_tracked"] = torch.tensor(5)
        layer.load_state_dict(state, strict=True)


each_case = pytest.mark.parametrize("name", sorted(CASES))


@each_case
def test_training_step(name):
    golden = Golden(name)
    layer = golden.layer()
    x = golden.tensor("train_x").requires_grad_()
    y = layer(x)
    y.backward(golden.tensor("train_dy"))
    found = {
        "y": (y.detach(), "train_y"),
        "dx": (x.grad, "train_dx"),
        "dweight": (layer.weight.grad, "train_dgamma"),
        "dbias": (layer.bias.grad, "train_dbeta"),
    }
    for ours, key in golden.roles("after").items():
        found[ours] = (getattr(layer, ours).detach(), key)
    assert len(found) >= 8
    errors = {
        k: relative_error(got, golden.z[key].reshape(got.shape)) for k, (got, key) in found.items()
    }
    assert max(errors.values()) < FRAMEWORK, errors


@each_case
def test_inference(name):
    golden = Golden(name)
    layer = golden.layer().eval()
    with torch.no_grad():
        assert relative_error(layer(golden.tensor("x")), golden.z["y_eval"]) < FRAMEWORK


WRONG = {
    "the other rule": ("tf114_single_renorm", "tf115_single_renorm"),
    "contiguous groups": ("tf115_single_ghost", {"ghost_groups": "contiguous"}),
    "one group": ("tf115_single_ghost", {"virtual_batch_size": 12}),
    "total variance": ("tf115_single_ghost", {"ghost_running": "total"}),
    "group after group": ("tf115_single_ghost", {"ghost_running": "sequential"}),
    "Bessel's correction": ("tf115_single_ghost", {"running_correction": 1}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rule_misses_by_far(wrong):
    name, change = WRONG[wrong]
    golden = Golden(name)
    if isinstance(change, str):
        layer = bnkit.nn.BatchNorm.from_tf(golden.channels, **golden.args)
        state = layer.state_dict()
        for ours, key in golden.roles("before").items():
            if ours in state:
                state[ours] = golden.tensor(key)
        layer.load_state_dict(state)
    else:
        right = golden.layer()
        options = {"virtual_batch_size": 3, "running_correction": 0, **change}
        layer = bnkit.nn.BatchNorm(golden.channels, -1, momentum=0.2, eps=1e-3, **options)
        layer.load_state_dict(right.state_dict())
    y = layer(golden.tensor("train_x")).detach()
    var = layer.running_var.numpy()
    expected = golden.z["after_moving_variance"].reshape(var.shape)
    errors = relative_error(y, golden.z["train_y"]), relative_error(var, expected)
    assert max(errors) > 1e-2, errors

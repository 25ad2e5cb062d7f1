"""Specifications: every axis, validated, compared; every preset as measured."""

import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from bnkit.core import (
    KERAS3,
    PRESETS,
    TORCH,
    BatchNormSpec,
    Effect,
    SpecError,
    difference,
    preset,
    spec_fields,
)

# (keep factor, eps, stored variance correction, channel axis) as measured in each framework
MEASURED = {
    "torch": (0.9, 1e-5, 1, 1),
    "tf-layers-fused": (0.99, 1e-3, 1, -1),
    "tf-layers-unfused": (0.99, 1e-3, 0, -1),
    "contrib": (0.999, 1e-3, 1, -1),
    "tf-keras2-fused": (0.99, 1e-3, 1, -1),
    "tf-keras2-unfused": (0.99, 1e-3, 0, -1),
    "keras3": (0.99, 1e-3, 0, -1),
    "flax": (0.99, 1e-5, 0, -1),
    "equinox-ema": (0.99, 1e-5, 0, 1),
    "equinox-batch": (0.99, 1e-5, 0, 1),
    "haiku": (0.9, 1e-5, 0, -1),
    "onnx": (0.9, 1e-5, 0, 1),
    "paddle": (0.9, 1e-5, 0, 1),
    "mxnet": (0.9, 1e-5, 0, 1),
    "caffe": (0.999, 1e-5, 1, 1),
}


def test_every_axis_of_difference_has_a_field():
    assert {f.metadata["axis"] for f in spec_fields()} == set(range(1, 15))
    for f in spec_fields():
        assert isinstance(f.metadata["effect"], Effect)
        assert f.metadata["meaning"]


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        TORCH.eps = 1.0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("eps", -1, "eps must be a number >= 0, got -1"),
        ("eps", float("nan"), "eps must be a number >= 0"),
        ("eps", "1e-5", "eps must be a number, got '1e-5'"),
        ("ema_weight", "0.1", "ema_weight must be a number or None"),
        ("running_correction", True, "running_correction must be one of 0, 1"),
        ("running_correction", 2, "'n-1-eps', 'double', got 2"),
        ("train_statistics", "moving", "'batch', 'updated_running'"),
        ("has_weight", 1, "has_weight must be True or False, got 1"),
        ("virtual_batch_size", 0, "virtual_batch_size must be None or an integer of at least 1"),
        ("virtual_batch_size", "3", "virtual_batch_size must be None or an integer"),
        ("eps", float("inf"), "eps must be a number >= 0"),
        ("ema_weight", float("nan"), "ema_weight must be a finite number or None"),
        ("ema_weight", True, "ema_weight must be a number or None"),
        ("channel_axis", 1.5, "channel_axis must be an integer, got 1.5"),
    ],
)
def test_impossible_values(field, value, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        BatchNormSpec(**{field: value})


@pytest.mark.parametrize("name", MEASURED)
def test_presets(name):
    keep, eps, correction, axis = MEASURED[name]
    spec = preset(name).spec
    assert 1 - spec.ema_weight == pytest.approx(keep)
    assert (spec.eps, spec.running_correction, spec.channel_axis) == (eps, correction, axis)


def test_preset_names_are_forgiving_and_errors_help():
    assert preset(" TF_Layers_Fused ") is PRESETS["tf-layers-fused"]
    with pytest.raises(
        SpecError, match=r"unknown specification 'keras': did you mean keras2.3-dense"
    ):
        preset("keras")
    with pytest.raises(SpecError, match=r"unknown specification 'zzz': Known: bnkit, torch"):
        preset("zzz")


def test_difference_is_ordered_by_gravity_and_symmetric():
    found = difference(KERAS3, TORCH)
    order = list(Effect)
    assert [order.index(d.effect) for d in found] == sorted(order.index(d.effect) for d in found)
    assert {d.field for d in found} == {d.field for d in difference(TORCH, KERAS3)}
    assert {d.field: (d.left, d.right) for d in found}["eps"] == (1e-3, 1e-5)
    assert difference(TORCH, TORCH) == ()


def test_difference_sees_every_field():
    other = {
        int: 7, float: 0.25, bool: None, str: None,
    }  # fmt: skip
    for f in fields(BatchNormSpec):
        value = getattr(TORCH, f.name)
        if isinstance(value, bool):
            changed = not value
        elif isinstance(value, str) or f.name == "running_correction":
            continue  # choices are checked above
        else:
            changed = other[type(value)] if value is not None else 4
        assert [d.field for d in difference(TORCH, replace(TORCH, **{f.name: changed}))] == [f.name]


def test_effective_eps():
    assert replace(preset("tf-layers-fused").spec, eps=1e-6).effective_eps == 1.001e-5
    assert TORCH.effective_eps == 1e-5

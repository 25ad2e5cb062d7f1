"""Every network that a real framework wrote, in PyTorch: the outputs that the framework computed."""

import numpy as np
import pytest
import torch

import bnkit
from bnkit.core import ConversionError, InputError
from bnkit.sources.checkpoint import read_checkpoint
from tests.conversion.cases import Case, networks
from tests.tolerances import relative_error

LIMIT = 1e-6

# Tensors that are no part of the network of the case.
BESIDE = {"torch_views", "tf115_v1_snappy"}
# What bnkit refuses, and why.
REFUSED = {
    "torch_pickled_module": "runs code",
    "torch_torchscript": "TorchScript archive, which holds code",
    "onnx_torch_export_training": "training form",
    "onnx_training_mode_opset14": "training form",
    "onnx_training_mode_opset15": "training form",
    "onnx_opset9_five_outputs": "training form",
    "onnx_runtime_scale": "a weight that the graph computes or is given at run time",
    # the exporter has folded batch norms: their number is no longer that of the network
    "onnx_torch_export_folded": "expected a target with a bias",
    "onnx_tf2onnx": "1 of the source for 3 of the target",
    # both branches hold a batch norm; the network of the case is one of them
    "onnx_if_branch": "2 of the source for 1 of the target",
}
# Names without an order of their own.
RULES = {
    "paddle_jit": {
        "batch_norm2d_2": "bn1",
        "batch_norm2d_3": "bn2",
        "batch_norm1d_1": "bn3",
        "conv2d_2": "conv1",
        "conv2d_3": "conv2",
    },
}
# Layers whose variables Keras 3 only numbers, without a configuration in the file.
UNNAMED = {
    "keras3_center_scale/model.weights.h5": {
        "batch_normalization_1": "keras3,has_bias=false",
        "batch_normalization_2": "keras3,has_weight=false",
    },
    "keras3_renorm/model.weights.h5": {"batch_normalization_1": "keras3,has_weight=false"},
    "keras3_subclass_weights_h5/model.weights.h5": {
        "batch_normalization_1": "keras3,has_weight=false"
    },
}
NOT_CHANNELS_FIRST = {"onnx_opset15_matmul", "onnx_opset7_spatial0"}
# bfloat16 numbers are compared with the float16 outputs of the case only by their own test.
WIDENED = {
    ("torch_half_precision", "bfloat16.pt"),
    ("torch_half_precision", "bfloat16.safetensors"),
}

# A copy of Caffe's blobs that does not say which layer is of which type.
NO_TYPES = {("caffe_blobs", "blobs.npz")}

CONVERTED = [
    c
    for c in networks()
    if c not in NO_TYPES
    and c[0] not in REFUSED
    and c[0] not in NOT_CHANNELS_FIRST
    and c not in WIDENED
]


def convert(case: Case, file: str, twin, **options):
    options.setdefault("partial", case.name in BESIDE)
    options.setdefault("rules", RULES.get(case.name))
    options.setdefault("flatten", case.flatten(twin))
    options.setdefault("spec", UNNAMED.get(f"{case.name}/{file}"))
    return bnkit.convert(case.folder / file, twin, **options)


def outputs(case: Case, twin) -> np.ndarray:
    with torch.no_grad():
        return twin(torch.from_numpy(case.z["x"])).numpy()


@pytest.mark.parametrize(("name", "file"), CONVERTED)
def test_outputs_are_those_of_the_framework(name, file):
    case = Case(name)
    twin = case.twin()
    first = convert(case, file, twin)
    specs = case.specs(twin, first)
    plan = convert(case, file, twin, spec=specs)
    if name not in BESIDE:
        assert not plan.missing
        assert not plan.unused
    assert len(plan.batch_norms) == len(case.norms)
    plan.apply()
    assert relative_error(outputs(case, twin), case.z["y_eval"]) < LIMIT + case.own_error


STORED = [
    c
    for c in CONVERTED
    if c[1].endswith((".keras", "model.h5", ".onnx", ".caffemodel")) or c[0].startswith("mxnet_s")
]


@pytest.mark.parametrize(("name", "file"), STORED)
def test_what_a_file_says_of_its_batch_norms_need_not_be_said(name, file):
    case = Case(name)
    twin = case.twin()
    plan = convert(case, file, twin)
    plan.apply()
    assert {t.origin for t in plan.batch_norms} == {"stored"}
    assert relative_error(outputs(case, twin), case.z["y_eval"]) < LIMIT + case.own_error


@pytest.mark.parametrize(("name", "file"), [c for c in networks() if c[0] in REFUSED])
def test_what_cannot_be_converted_is_refused_with_the_reason(name, file):
    case = Case(name)
    with pytest.raises((ConversionError, InputError), match=REFUSED[name]):
        convert(case, file, case.twin(), flatten={}, partial=name == "onnx_torch_export_folded")


def test_bfloat16_is_widened_without_loss():
    case = Case("torch_half_precision")
    twin = case.twin()
    for file in ("bfloat16.pt", "bfloat16.safetensors"):
        convert(case, file, twin).apply()
        stored = read_checkpoint(case.folder / "bfloat16.pt").tensors
        assert torch.equal(twin.bn1.running_var, stored["net.1.running_var"].float())
        assert torch.equal(twin.fc1.weight, stored["net.0.weight"].float())


def test_averages_are_taken_where_they_are_asked_for():
    case = Case("tf115_layers_fused_conv")
    twin = case.twin()
    spec = case.specs(twin, convert(case, "model.ckpt-6", twin))
    plan = convert(case, "model.ckpt-6", twin, spec=spec, averages=True)
    plan.apply()
    assert relative_error(outputs(case, twin), case.z["y_eval_ema"]) < LIMIT
    with pytest.raises(InputError, match="expected exponential moving averages, got none"):
        convert(Case("tf115_contrib_bn"), "model.ckpt-6", twin, averages=True)


def test_optimizer_slots_and_counters_are_listed_and_left():
    case = Case("tf115_layers_unfused_dense")
    plan = convert(case, "model.ckpt-6", case.twin())
    reasons = set(plan.aside.values())
    assert {"optimizer: Adam", "optimizer: Adam_1", "counter of the training loop"} <= reasons
    assert not plan.unused


def test_where_names_have_no_order_the_candidates_are_named():
    case = Case("paddle_jit")
    with pytest.raises(ConversionError) as caught:
        convert(case, "inference.pdiparams", case.twin(), rules=None)
    words = ("'batch_norm1d_1' (6,)", "'batch_norm2d_2' (6,)", "'bn1' (6,)", "'bn3' (6,)", "rules=")
    assert all(word in str(caught.value) for word in words)


def test_the_averaged_copy_of_a_training_checkpoint_stays_where_it_is():
    case = Case("torch_training_checkpoint")
    twin = case.twin()
    plan = convert(case, "checkpoint.pt", twin)
    assert all("ema" not in name for name in plan.restored.values())

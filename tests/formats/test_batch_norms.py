"""The batch norms that files describe, against the networks that wrote them."""

import numpy as np
import pytest

from bnkit.formats import ROLES, read
from bnkit.formats.by_name import entries_by_name
from tests.formats.files import DATA, bits, stored_files

# roles in the words of the cases
WORDS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "statistics_factor": "factor",
}
FILES = [
    one
    for one in stored_files()
    if not one.case.startswith("hostile")
    and not one.format.startswith("torch")
    # batch norms that a file cannot name, or that the exporter has folded
    and one.case not in ("torch_no_running_stats", "onnx_torch_export_folded", "onnx_tf2onnx")
    and one.case != "onnx_if_branch"  # two nodes in branches of which the network has one
    and one.case != "onnx_torch_export_training"  # the export moved the statistics
    and not one.path.name.endswith((".pdopt", ".eqx", "blobs.npz"))
    and one.path.name != "bfloat16.safetensors"
]


@pytest.mark.parametrize("stored", FILES, ids=str)
def test_roles_are_those_of_the_network(stored):
    checkpoint, state = read(stored.path), stored.state()
    nodes = [one for one in stored.about["graph"] if one["op"] == "batch_norm"]
    assert len(checkpoint.batch_norms) == len(nodes)
    found = [_contents(checkpoint, entry) for entry in checkpoint.batch_norms]
    for node in nodes:
        wanted = {
            WORDS[word]: bits(state[name], "")
            for word, name in node["tensors"].items()
            if word in WORDS and (stored.case, name) != ("onnx_runtime_scale", "bn_3.scale")
        }
        assert any(_agree(wanted, one) for one in found), node["name"]


def _contents(checkpoint, entry):
    assert set(entry.tensors) <= set(ROLES)
    return {
        role: bits(checkpoint[name], checkpoint.dtypes[name])
        for role, name in entry.tensors.items()
    }


def _agree(wanted, found):
    """Weight or bias may be open where the file does not hold the settings of the layer."""
    known = {role: value for role, value in wanted.items() if role in found}
    return known.items() <= found.items() and {"running_mean", "running_var"} <= known.keys()


CONFIGURED = [
    one
    for one in FILES
    if one.format in ("keras-zip", "caffemodel", "onnx", "keras-zip (tf_keras)")
    or one.case in ("mxnet_symbol", "mxnet_symbol_fix_gamma", "paddle_jit")
    or one.path.name == "model.h5"
]


@pytest.mark.parametrize("stored", CONFIGURED, ids=str)
def test_settings_are_those_of_the_network(stored):
    checkpoint, state = read(stored.path), stored.state()
    nodes = [one for one in stored.about["graph"] if one["op"] == "batch_norm"]
    assert nodes
    assert all(entry.eps is not None for entry in checkpoint.batch_norms)
    for node in nodes:
        mean = bits(state[node["tensors"]["moving_mean"]], "")
        entry = next(
            one
            for one in checkpoint.batch_norms
            if _contents(checkpoint, one)["running_mean"] == mean
        )
        resolved = node["resolved"]
        assert np.isclose(entry.eps, resolved["epsilon"], rtol=1e-6)
        assert np.isclose(entry.ema_weight, 1 - resolved["keep"], rtol=1e-5), node["name"]
        if "scale" in resolved and stored.format.startswith("keras"):
            assert ("weight" in entry.tensors) == resolved["scale"]
            assert ("bias" in entry.tensors) == resolved["center"]


def test_three_variables_of_a_layer_without_settings_stay_open():
    checkpoint = read(DATA / "keras3_single_no_scale" / "layer.weights.h5")
    entry = checkpoint.batch_norms[0]
    assert set(entry.tensors) == {"running_mean", "running_var"}
    assert entry.attributes["weight or bias"] == "layers/batch_normalization/vars/0"


def test_names_of_a_nested_model():
    checkpoint = read(DATA / "keras3_frozen" / "model.keras")
    assert [one.name for one in checkpoint.batch_norms] == [
        "backbone/inner_bn",
        "backbone/inner_bn2",
        "outer_bn",
    ]
    assert [one.name for one in read(DATA / "keras3_frozen" / "model.h5").batch_norms] == [
        "backbone/inner_bn",
        "backbone/inner_bn2",
        "outer_bn",
    ]


def test_shadows_of_contrib_belong_to_their_layer():
    path = DATA / "tf115_single_contrib_zero_debias"
    (entry,) = read(path / "layer.ckpt-5").batch_norms
    assert entry.name == "one/BatchNorm"
    assert {"biased_mean", "count"} <= set(entry.tensors)


def test_attribute_paths_of_an_object_checkpoint():
    checkpoint = read(DATA / "tf221_subclass_checkpoint" / "subclass")
    objects = checkpoint.metadata["objects"]
    name = "model/blocks/0/1/gamma/.ATTRIBUTES/VARIABLE_VALUE"
    assert objects[name].path == "model.blocks.0.1.gamma"
    assert objects[name].full_name.endswith("/gamma")
    stored = set(checkpoint) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert stored == set(objects)
    assert all(one.path for one in objects.values())


def test_two_claims_to_one_role_make_no_entry():
    names = ["a.gamma", "a.weight", "a.running_mean", "a.running_var"]
    assert entries_by_name(names) == ()
    assert len(entries_by_name(names[1:])) == 1


def test_a_layer_without_statistics_is_none():
    assert entries_by_name(["norm/gamma", "norm/beta"]) == ()

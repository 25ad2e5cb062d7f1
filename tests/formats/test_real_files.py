"""Every file of every framework, bit for bit."""

from collections import Counter

import pytest
from safetensors.torch import load_file

from bnkit.formats import CheckpointError, read
from tests.formats.files import DATA, bits, find, stored_files

FILES = [one for one in stored_files() if not one.case.startswith("hostile")]
OURS = [one for one in FILES if not one.format.startswith("torch")]
# stored names that the files do not have, and why; everything else must be found by name
BY_CONTENT = {
    "keras3_sharded_weights": "the case does not say which name has which path",
    "paddle_jit": "the program has other names",
    "tf221_tfkeras_keras_zip": "the file has numbers",
}
ELSEWHERE = {  # state/ describes these files and others
    "paddle_pdparams/model.pdopt": "the optimizer",
    "torch_half_precision/bfloat16.safetensors": "compared below",
}
RUNTIME = {("onnx_runtime_scale", "bn_3.scale")}  # an input of the graph, not in the file


@pytest.mark.parametrize("stored", OURS, ids=str)
def test_every_tensor_is_what_the_framework_stored(stored):
    if str(stored) in ELSEWHERE:
        pytest.skip(ELSEWHERE[str(stored)])
    checkpoint = read(stored.path)
    state = stored.state()
    assert state
    if checkpoint.format == "equinox":
        order = [one["name"] for one in stored.about["stored"]]
        names = {name: str(number) for number, name in enumerate(order)}
    elif stored.case in BY_CONTENT:
        assert _contents(checkpoint) >= Counter(bits(array, "") for array in state.values())
        return
    else:
        names = {name: find(checkpoint, stored, name) for name in state}
    for name, array in state.items():
        if name.startswith(("torch/", "tf_keras/")) or (stored.case, name) in RUNTIME:
            continue  # of the model before its export
        found = names[name]
        assert found is not None, name
        assert bits(checkpoint[found], checkpoint.dtypes[found]) == bits(array, ""), name
        assert checkpoint.shapes[found] == array.shape
        assert not checkpoint[found].flags.writeable


def _contents(checkpoint):
    return Counter(bits(checkpoint[name], checkpoint.dtypes[name]) for name in checkpoint)


@pytest.mark.parametrize("stored", OURS, ids=str)
def test_what_is_listed_can_be_read(stored):
    checkpoint = read(stored.path)
    checkpoint.verify()
    assert len(checkpoint) == len(checkpoint.names) == len(set(checkpoint.names)) > 0
    for name, tensor in checkpoint.tensors.items():
        assert checkpoint[name].shape == tensor.shape == checkpoint.shapes[name]


def test_strings_of_a_bundle():
    stored = next(one for one in OURS if one.case == "tf115_dtypes")
    checkpoint = read(stored.path)
    texts = [one for one in stored.about["stored"] if "hex" in one]
    assert texts
    for one in texts:
        assert checkpoint.dtypes[one["name"]] == "string"
        assert [value.hex() for value in checkpoint[one["name"]].reshape(-1)] == one["hex"]


def test_stored_dtypes_of_a_bundle():
    stored = next(one for one in OURS if one.case == "tf115_dtypes")
    checkpoint = read(stored.path)
    for one in stored.about["stored"]:
        if "hex" not in one and "bytes" not in one:
            assert checkpoint.dtypes[one["name"]] == one["dtype"]
    assert "bfloat16" in checkpoint.dtypes.values()


def test_bfloat16_as_the_library_reads_it():
    path = DATA / "torch_half_precision" / "bfloat16.safetensors"
    checkpoint, wanted = read(path), load_file(path)
    assert sorted(checkpoint) == sorted(wanted)
    assert "bfloat16" in checkpoint.dtypes.values()
    for name, tensor in wanted.items():
        widened = tensor.float() if tensor.is_floating_point() else tensor
        assert checkpoint[name].tobytes() == widened.numpy().tobytes(), name


@pytest.mark.parametrize("stored", [one for one in FILES if one not in OURS], ids=str)
def test_files_of_torch_save_are_left_to_sources(stored):
    with pytest.raises(CheckpointError, match=r"read_checkpoint|a pickle of arrays alone"):
        read(stored.path)


def test_all_formats_are_among_the_files():
    found = {read(one.path).format for one in OURS}
    assert found == {
        *("tf-bundle", "tf-v1", "keras", "keras-h5", "keras-weights-h5", "keras-shards"),
        *("npz", "equinox", "flax-msgpack", "safetensors", "caffe", "mxnet", "onnx"),
        *("paddle-pdiparams", "paddle-pdparams"),
    }

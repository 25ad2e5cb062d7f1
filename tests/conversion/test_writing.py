"""New files: the numbers that were planned, the rest as it was, and never half of one."""

import json

import numpy as np
import pytest
import torch

import bnkit
from bnkit.conversion.msgpack_writer import pack
from bnkit.core import ConversionError, InputError, OutputError
from bnkit.formats import read
from bnkit.formats.mapped import Mapped
from bnkit.formats.msgpack_data import unpack
from tests.conversion.cases import DATA, Case
from tests.conversion.test_plan import Net, checkpoint
from tests.tolerances import relative_error

LIMIT = 1e-6
# A file of each format that is written, and how its batch norms differ from the defaults.
PATTERNS = {
    "keras3_weights_h5/model.weights.h5": None,
    "keras3_legacy_h5/model.h5": None,
    "keras3_keras_zip/model.keras": None,
    "keras3_mobile/model.keras": None,
    "flax_linen_msgpack/variables.msgpack": None,
    "flax_linen_train_state/train_state.msgpack": None,
    "flax_linen_safetensors/model.safetensors": None,
    "haiku_npz/haiku.npz": "haiku,ema_weight=0.2",
    "equinox_ema/model.eqx": None,
    "equinox_batch/model.eqx": "equinox-batch,ema_weight=0.2",
    "onnx_opset7_conv/model.onnx": None,
    "onnx_opset9_constants/model.onnx": None,
    "torch_safetensors/model.safetensors": None,
}


def randomized(twin):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            if tensor.is_floating_point():
                value = torch.randn(tensor.shape, generator=draw)
                tensor.copy_(value.exp() if "var" in name else value)
    return twin


@pytest.mark.parametrize("pattern", PATTERNS)
def test_out_and_back_is_the_same_network(pattern, tmp_path):
    name, file = pattern.split("/")
    case = Case(name)
    first, again = case.twin(), case.twin()
    flatten = case.flatten(first)
    spec = PATTERNS[pattern]
    there = bnkit.convert(case.folder / file, first, flatten=flatten, spec=spec)
    for t in there.batch_norms:  # layers without a weight or bias stay so
        module = first.get_submodule(t.pair.target.name)
        module.kept = [r for r in ("weight", "bias") if r in t.pair.source.tensors]
    randomized(first)
    with torch.no_grad():
        for t in there.transfers:
            module = first.get_submodule(t.pair.target.name)
            kept = getattr(module, "kept", t.pair.source.tensors)
            for role in ("weight", "bias"):
                if role not in kept and getattr(module, role) is not None:
                    getattr(module, role).fill_(role == "weight")
    out = bnkit.convert(first, case.folder / file, flatten=_back(there), target_spec=spec)
    assert set(out.tensors) <= set(read(case.folder / file).tensors)
    new = out.write(tmp_path / f"new{''.join(_ending(file))}")
    bnkit.convert(new, again, flatten=flatten, spec=spec).apply()
    x = torch.from_numpy(case.z["x"])
    with torch.no_grad():
        assert relative_error(again(x), first(x)) < 3 * LIMIT
    old, written = read(case.folder / file), read(new)
    assert written.names == old.names
    assert written.dtypes == old.dtypes
    untouched = set(old.tensors) - set(out.tensors)
    for tensor in untouched:
        np.testing.assert_array_equal(written[tensor], old[tensor])
    assert [p.name for p in tmp_path.iterdir()] == [new.name]


def _ending(file):
    return [".weights.h5"] if file.endswith(".weights.h5") else [file[file.index(".") :]]


def _back(plan):
    """The same sizes, by the names of the layers in the file."""
    sizes = {}
    for t in plan.transfers:
        for note in t.notes:
            if note.startswith("inputs reordered"):
                text = note.rpartition("of ")[2].strip("()").split(",")
                sizes[t.pair.source.name] = tuple(int(v) for v in text if v.strip())
    return sizes


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".npz"])
def test_a_model_is_written_without_being_changed(ending, tmp_path):
    model = Net()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    plan = bnkit.convert(checkpoint(), model)
    path = plan.write(tmp_path / f"new{ending}")
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    again = Net()
    bnkit.convert(path, again).apply()
    plan.apply()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(OutputError, match="got one that exists"):
        plan.write(path)
    assert plan.write(path, replace=True) == path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_files_that_cannot_be_written_are_refused(tmp_path):
    plan = bnkit.convert(checkpoint(), Net())
    with pytest.raises(OutputError, match=r"ends in \.pt, \.pth, \.safetensors, \.npz"):
        plan.write(tmp_path / "new.h5")
    with pytest.raises(OutputError, match="No such file"):
        plan.write(tmp_path / "no" / "such.npz")
    case = Case("tf115_layers_fused_conv")
    plan = bnkit.convert(case.twin(), case.folder / "model.ckpt-6")
    with pytest.raises(InputError, match=r"of a format that is written \(npz, .*got tf-bundle"):
        plan.write(tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=r"plan\.write\(path\)"):
        plan.apply()
    case = Case("keras3_keras_zip")
    plan = bnkit.convert(case.twin(), case.folder / "model.keras")
    with pytest.raises(OutputError, match=r"ends in '\.keras'"):
        plan.write(tmp_path / "new.npz")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_where_writing_fails(tmp_path, monkeypatch):
    plan = bnkit.convert(checkpoint(), Net())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OutputError, match="No space left"):
        plan.write(tmp_path / "new.npz")
    assert not list(tmp_path.iterdir())


def test_layers_that_share_a_tensor_are_not_given_two_values(tmp_path):
    case = Case("onnx_shared_weight")
    model = randomized(case.twin())
    plan = bnkit.convert(model, case.folder / "model.onnx")
    with pytest.raises(ConversionError, match="given different numbers"):
        plan.write(tmp_path / "new.onnx")


def test_plans_are_plain_data():
    text = json.dumps(bnkit.convert(checkpoint(), Net()).to_dict(), allow_nan=False)
    assert json.loads(text)["layers"][0]["found_by"] == "only one of its shape"


@pytest.mark.parametrize(
    "value",
    [
        {"a": [0, 127, 128, -1, -32, -33, 2**31, -(2**63), 2**64 - 1], "": None},
        {"x" * 40: 1.5, "y" * 300: True, "z" * 70_000: False},
        list(range(20)),
        {str(i): i for i in range(70_000)},
    ],
)
def test_message_pack_is_read_as_it_was_written(value):
    assert unpack(Mapped(DATA, memoryview(pack(value)), "test")) == value


def test_message_pack_refuses_what_it_cannot_hold():
    with pytest.raises(InputError, match="got set"):
        pack({"a": {1}})
    with pytest.raises(InputError, match="64 bits"):
        pack(2**64)

"""Files made to mislead: one sentence each, no code run, nothing outside of the folder opened."""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from onnx import TensorProto, helper, save

from bnkit.formats import CheckpointError, read
from tests.formats.files import DATA
from tests.formats.refusal import refused

CASE = json.loads((DATA / "hostile_pickles" / "case.json").read_text(encoding="utf-8"))
KERAS = json.loads((DATA / "hostile_keras" / "case.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [one["path"] for one in CASE["files"]])
def test_pickles_are_not_run(name, tmp_path, monkeypatch):
    shutil.copy(DATA / "hostile_pickles" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / name, "pickle|read_checkpoint")
    assert not (tmp_path / CASE["marker"]).exists()


@pytest.mark.parametrize("name", [one["path"] for one in KERAS["files"]])
def test_lambda_layers_are_not_run(name, tmp_path, monkeypatch):
    shutil.copy(DATA / "hostile_keras" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    checkpoint = read(tmp_path / name)
    checkpoint.verify()
    assert checkpoint.batch_norms[0].name == "bn"
    assert not (tmp_path / KERAS["marker"]).exists()


def test_nothing_there(tmp_path):
    refused(tmp_path / "none.keras", "No such file")
    refused(tmp_path, "folder")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", "empty file")
    (tmp_path / "text").write_text("what is this", encoding="utf-8")
    refused(tmp_path / "text", "begins with")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are a thing of POSIX")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "pipe")


# safetensors


def safetensors(path, header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def tensor(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HEADERS = {
    "overlap": ({"a": tensor(0, 8), "b": tensor(4, 12)}, "gaps or overlaps"),
    "gap": ({"a": tensor(0, 8), "b": tensor(12, 20)}, "gaps or overlaps"),
    "rest": ({"a": tensor(0, 8)}, "8 bytes of tensors"),
    "outside": ({"a": tensor(0, 8, (1 << 20,))}, "4194304 bytes"),
    "huge": ({"a": tensor(0, 8, (1 << 62, 4))}, "memory"),
    "negative": ({"a": tensor(-8, 0)}, "outside"),
    "dtype": ({"a": tensor(0, 8, dtype="PICKLE")}, "dtype"),
    "truth": ({"a": tensor(0, 8, (True, 2))}, "shape"),
    "no object": ({"a": 3}, "object"),
    "twice": (b'{"a":1,"a":2}', "twice"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON"),
}


@pytest.mark.parametrize(("header", "match"), HEADERS.values(), ids=HEADERS)
def test_headers_of_safetensors(header, match, tmp_path):
    refused(safetensors(tmp_path / "m.safetensors", header, bytes(20)), match)


# NumPy and zip


def test_a_header_is_not_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = "{'descr': '<f4', 'fortran_order': False, 'shape': (open('MARK', 'w') and 1,), }\n"
    content = b"\x93NUMPY\x01\x00" + len(evil).to_bytes(2, "little") + evil.encode() + bytes(4)
    (tmp_path / "m.npy").write_bytes(content)
    refused(tmp_path / "m.npy", "header of an array of numbers")
    assert not (tmp_path / "MARK").exists()


def test_an_object_array_does_not_hide_the_others(tmp_path):
    np.savez(tmp_path / "m.npz", good=np.ones(3), bad=np.array([{}], dtype=object))
    checkpoint = read(tmp_path / "m.npz")
    assert checkpoint["good"].tolist() == [1, 1, 1]
    assert checkpoint.dtypes["bad"] == "object"
    refused(tmp_path / "m.npz", "pickle")


def test_a_zip_bomb(tmp_path):
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 25,)}
        )
        archive.writestr("a.npy", header.getvalue() + bytes(1 << 25))
    assert path.stat().st_size < 1 << 17
    refused(path, "times the compressed size")


def test_members_that_share_their_bytes(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.arange(100.0), b=np.arange(100.0))
    content = bytearray(path.read_bytes())
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = bytes(4)  # the header of `b` is that of `a`
    path.write_bytes(content)
    refused(path, "overlap")


def test_a_member_with_other_bytes(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.arange(100.0))
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    refused(path, "CRC-32")


# Keras


def h5(path, build):
    with h5py.File(path, "w", libver="earliest") as file:
        build(file)
    return path


def test_links_to_other_files(tmp_path):
    h5(tmp_path / "secret.h5", lambda file: file.create_dataset("x", data=[1.0]))

    def external(file):
        file["layers/a"] = h5py.ExternalLink("secret.h5", "/x")

    def soft(file):
        file["x"] = [1.0]
        file["layers/a"] = h5py.SoftLink("/x")

    refused(h5(tmp_path / "m.h5", external), "link to elsewhere")
    refused(h5(tmp_path / "n.h5", soft), "link to elsewhere")


def test_data_in_other_files(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8))

    def build(file):
        file.create_dataset("a", (2,), "f4", external=[(str(tmp_path / "secret"), 0, 8)])

    refused(h5(tmp_path / "m.h5", build), "data elsewhere")


def test_a_group_inside_of_itself(tmp_path):
    def build(file):
        group = file.create_group("a")
        group["a"] = group

    refused(h5(tmp_path / "m.h5", build), "two parents|levels")


def test_a_dataset_that_was_never_written(tmp_path):
    def build(file):
        file.create_dataset("a", (1 << 40,), "f4")

    refused(h5(tmp_path / "m.h5", build), "never written")


def test_chunks_are_refused_with_a_remedy(tmp_path):
    def build(file):
        file.create_dataset("a", data=np.zeros(1000), compression="gzip")

    refused(h5(tmp_path / "m.h5", build), "without compression")


@pytest.mark.parametrize(
    "name", ["../m_00000.weights.h5", "/m_00000.weights.h5", "sub/link.h5", ""]
)
def test_shards_elsewhere(name, tmp_path):
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    source = DATA / "keras3_sharded_weights" / "model_00000.weights.h5"
    shutil.copy(source, tmp_path / "m_00000.weights.h5")
    (inside / "sub" / "link.h5").symlink_to(tmp_path / "m_00000.weights.h5")
    index = inside / "m.weights.json"
    index.write_text(json.dumps({"weight_map": {"/a/vars": name}}), encoding="utf-8")
    refused(index, "leads out of it")


# ONNX


def onnx_model(path, location, length=16, nested=0):
    value = helper.make_tensor("w", TensorProto.FLOAT, [4], np.zeros(4, "f4").tobytes(), raw=True)
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, "offset": "0", "length": str(length)}.items():
        entry = value.external_data.add()
        entry.key, entry.value = key, text
    graph = helper.make_graph([], "g", [], [], [value])
    for _ in range(nested):
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], []
        )
    save(helper.make_model(graph), path)
    return path


@pytest.mark.parametrize("location", ["../secret", "/secret", "", "a/../../secret", "link", "\0"])
def test_external_data_elsewhere(location, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (inside / "link").symlink_to(tmp_path / "secret")
    refused(onnx_model(inside / "m.onnx", location), "leads out of it")


def test_external_data_that_is_short(tmp_path):
    (tmp_path / "data").write_bytes(bytes(15))
    with pytest.raises(CheckpointError, match="outside of the file"):
        read(onnx_model(tmp_path / "m.onnx", "data")).verify()
    refused(onnx_model(tmp_path / "n.onnx", "data", length=15), "16 bytes")


def test_graphs_in_graphs(tmp_path):
    (tmp_path / "data").write_bytes(bytes(16))
    assert "w" in read(onnx_model(tmp_path / "few.onnx", "data", nested=3))
    refused(onnx_model(tmp_path / "many.onnx", "data", nested=20), "graphs in graphs")


# MessagePack, pickle, MXNet, Paddle


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\x81\xa1a" * 5000 + b"\xc0", "levels"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff\xc0", "outside"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "outside"),
        (b"\x82\xa1a\xc0\xa1a\xc0", "keys that differ"),
        (b"\x81\xa1a\xd4\x07\x00", "extension type 7"),
        (b"\x81\xa1a\xc7\x0a\x01\x93\x91\xcd\xff\xff\xa2f4\xc4\x00", "dtype"),
        (b"\x81\xa1a\xc1", "type of MessagePack"),
        (b"\x81\xa1a\xc0\xc0", "bytes more"),
        (b"\x81\xa1\xff\xc0", "UTF-8"),
    ],
)
def test_messagepack(content, match, tmp_path):
    (tmp_path / "m.msgpack").write_bytes(content)
    refused(tmp_path / "m.msgpack", match)


class Calls:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_ordinary_pickles_of_arrays(protocol, tmp_path):
    path = tmp_path / "m.pdparams"
    arrays = {"a": np.arange(3.0), "b": np.ones((2, 2), "f4", order="F"), "s": np.array(3)}
    path.write_bytes(pickle.dumps({**arrays, "more": {"x": ("name", np.ones(2))}}, protocol))
    if protocol == 5:  # arrays are then other objects, which Paddle does not write
        refused(path, "pickle of arrays alone")
        return
    checkpoint = read(path)
    for name, array in {**arrays, "more/x": np.ones(2)}.items():
        np.testing.assert_array_equal(checkpoint[name], array)
        assert checkpoint[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"a": Calls(os.getcwd)}, "getcwd"),
        ({"a": Calls(eval, "1")}, "eval"),
        ({"a": Calls(np.array, [1])}, "numpy"),
        ({"a": np.array([None])}, "state of an array|dtype"),
        ([1, 2], "dictionary"),
        ({1: np.ones(2)}, "dictionary"),
        ({"a": Path("b")}, "pathlib|Path"),
    ],
)
def test_other_pickles(value, match, tmp_path):
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps(value, 4))
    refused(tmp_path / "m.pdparams", match)


def test_a_dictionary_inside_of_itself(tmp_path):
    value = {"a": np.ones(2)}
    value["b"] = value
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps(value, 4))
    refused(tmp_path / "m.pdparams", "two parents")


def test_mxnet_numbers(tmp_path):
    path = tmp_path / "m.params"
    start = (0x112).to_bytes(8, "little") + bytes(8)
    path.write_bytes(start + (1 << 62).to_bytes(8, "little"))
    refused(path, "outside")
    path.write_bytes(start + (1).to_bytes(8, "little") + (1 << 30).to_bytes(4, "little") * 4)
    refused(path, "dimensions")


def test_a_program_of_other_parameters(tmp_path):
    for name in ("inference.json", "inference.pdiparams"):
        shutil.copy(DATA / "paddle_jit" / name, tmp_path)
    program = json.loads((tmp_path / "inference.json").read_text(encoding="utf-8"))
    del program["program"]["regions"][0]["blocks"][0]["ops"][0]
    (tmp_path / "inference.json").write_text(json.dumps(program), encoding="utf-8")
    refused(tmp_path / "inference.pdiparams", "19 parameters")
    (tmp_path / "inference.json").unlink()
    assert read(tmp_path / "inference.pdiparams").names[:2] == ("0", "1")


def test_an_unknown_format_is_named():
    with pytest.raises(CheckpointError, match="expected one of tf-bundle"):
        read(DATA / "haiku_single" / "layer.npz", "keras9")

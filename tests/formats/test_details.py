"""What the stored files do not show: other orders of bytes and axes, pieces, older layouts."""

import json
import struct

import numpy as np
import pytest

from bnkit.formats import FORMATS, Checkpoint, CheckpointError, read
from bnkit.formats.crc32c import crc32c
from tests.formats import bundle_writer as write
from tests.formats.files import DATA


def test_a_checkpoint_is_a_mapping():
    checkpoint = read(DATA / "haiku_single" / "layer.npz")
    name = "params/batch_norm/scale"
    assert isinstance(checkpoint, Checkpoint)
    assert name in checkpoint
    assert list(checkpoint) == list(checkpoint.names)
    assert set(checkpoint.keys()) == set(checkpoint.shapes) == set(checkpoint.dtypes)
    assert checkpoint == read(DATA / "haiku_single" / "layer.npz")
    assert len({checkpoint, read(DATA / "haiku_single" / "layer.npz")}) == 1
    assert name not in repr(checkpoint)
    with pytest.raises(KeyError):
        checkpoint["none"]
    with pytest.raises(ValueError, match="read-only"):
        checkpoint[name][...] = 0


@pytest.mark.parametrize("kind", FORMATS)
def test_content_decides_not_the_name(kind, tmp_path):
    """Every format under one and the same name."""
    source = {
        "tf-bundle": "tf115_dtypes/all_types.index",
        "tf-v1": "tf115_v1_format/model.ckpt-6",
        "keras": "keras3_mobile/model.keras",
        "npz": "haiku_npz/haiku.npz",
        "keras-h5": "keras3_legacy_h5/model.h5",
        "keras-shards": "keras3_sharded_weights/model.weights.json",
        "npy": "equinox_ema/model.eqx",
        "mxnet": "mxnet_gluon/net.params",
        "safetensors": "torch_volume/model.safetensors",
        "paddle-pdiparams": "paddle_jit/inference.pdiparams",
        "paddle-pdparams": "paddle_pdparams/model.pdparams",
        "flax-msgpack": "flax_nnx/state.msgpack",
        "onnx": "onnx_conv3d/model.onnx",
        "caffe": "caffe_blobs/net.caffemodel",
    }[kind]
    for file in (DATA / source).parent.glob("model_0*.h5"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "file.bin"
    path.write_bytes((DATA / source).read_bytes())
    assert len(read(path)) == len(read(path, kind)) == len(read(DATA / source)) > 0
    for other in set(FORMATS) - {kind, "npy"}:
        try:
            read(path, other).verify()
        except CheckpointError as error:
            assert "file.bin" in str(error)  # noqa: PT017  most combinations are refused


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i8", "|b1", "<c8", "<f2", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numpy(dtype, order, tmp_path):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 5, dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", a=array, text=np.array(["ä", "b"]))
    checkpoint = read(tmp_path / "a.npz")
    for found in (read(tmp_path / "a.npy")["0"], checkpoint["a"]):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype.newbyteorder("=")
    assert checkpoint["text"].tolist() == ["ä".encode(), b"b"]


def test_leaves_behind_a_line_of_json(tmp_path):
    with (tmp_path / "model.eqx").open("wb") as file:
        file.write(json.dumps({"width": 3}).encode() + b"\n")
        np.save(file, np.ones(3))
        np.save(file, np.array(2))
    checkpoint = read(tmp_path / "model.eqx")
    assert checkpoint.format == "equinox"
    assert checkpoint.metadata["header"] == {"width": 3}
    assert checkpoint.names == ("0", "1")
    assert checkpoint["1"] == 2


def packed(value):
    """MessagePack, as much as the tests need."""
    if isinstance(value, dict):
        parts = [packed(key) + packed(inner) for key, inner in value.items()]
        return struct.pack(">BH", 0xDE, len(parts)) + b"".join(parts)
    if isinstance(value, list | tuple):
        return struct.pack(">BH", 0xDC, len(value)) + b"".join(map(packed, value))
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        return struct.pack(">BB", 0xD9, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    if isinstance(value, complex):
        return extension(2, packed([value.real, value.imag]))
    return extension(1, packed([value.shape, value.dtype.name, value.tobytes()]))


def extension(code, data):
    return struct.pack(">BIB", 0xC9, len(data), code) + data


def chunks(array, size):
    parts = [array.reshape(-1)[at : at + size] for at in range(0, array.size, size)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(number): length for number, length in enumerate(array.shape)},
        "chunks": {str(number): part for number, part in enumerate(parts)},
    }


def test_large_arrays_of_flax_are_in_pieces(tmp_path):
    array = np.arange(60, dtype=np.float32).reshape(3, 20)
    tree = {"params": {"a": chunks(array, 7), "z": 1 + 2j}, "step": 3, "rate": 0.5, "name": "x"}
    path = tmp_path / "m.msgpack"
    path.write_bytes(packed(tree))
    checkpoint = read(path)
    np.testing.assert_array_equal(checkpoint["params/a"], array)
    assert checkpoint.shapes["params/a"] == (3, 20)
    assert checkpoint["params/z"] == 1 + 2j
    assert (checkpoint["step"], checkpoint.dtypes["step"]) == (3, "int64")
    assert checkpoint["rate"] == 0.5
    assert checkpoint.metadata["others"] == {"name": "x"}
    for name, change in {
        "missing": lambda one: one["chunks"].pop("3"),
        "shape": lambda one: one["shape"].update({"0": 4}),
        "dtype": lambda one: one["chunks"].update({"1": np.zeros(7, np.int32)}),
    }.items():
        broken = chunks(array, 7)
        change(broken)
        path.write_bytes(packed({"a": broken}))
        with pytest.raises(CheckpointError, match="chunks"):
            read(path)["a"]
        assert name


def test_slices_in_two_dimensions(tmp_path):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    spans = [[(r, 2), (c, 3)] for r in (0, 2) for c in (0, 3)] + []
    entries, data = {b"": write.header()}, b""
    entries[b"w"] = write.entry("float32", (4, 6), slices=spans)
    for span in spans:
        (row, _), (column, _) = span
        part = np.ascontiguousarray(whole[row : row + 2, column : column + 3])
        key = b"\0w\0\1\1\2" + bytes([0x80 ^ row, 0x80 ^ 2, 0x80 ^ column, 0x80 ^ 3])
        entries[key] = write.entry(
            "float32", (2, 3), offset=len(data), size=24, checksum=crc32c(part.tobytes())
        )
        data += part.tobytes()
    (tmp_path / "m.index").write_bytes(write.index(entries))
    (tmp_path / "m.data-00000-of-00001").write_bytes(data)
    checkpoint = read(tmp_path / "m")
    assert checkpoint.names == ("w",)
    np.testing.assert_array_equal(checkpoint["w"], whole)


def test_caffe_layers_of_the_first_version(tmp_path):
    """`layers` with an enumerated type, and blobs with four sizes."""
    values = np.arange(6, dtype="<f4")
    sizes = b"".join(
        write.field(n, size) for n, size in zip((1, 2, 3, 4), (1, 2, 3, 1), strict=True)
    )
    blob = sizes + write.field(5, values.tobytes())
    layer = write.field(4, b"conv1") + write.field(5, 4) + write.field(6, blob)
    (tmp_path / "m.caffemodel").write_bytes(write.field(1, b"net") + write.field(2, layer))
    checkpoint = read(tmp_path / "m.caffemodel")
    assert checkpoint.names == ("conv1/0",)
    np.testing.assert_array_equal(checkpoint["conv1/0"], values.reshape(1, 2, 3, 1))
    assert checkpoint.metadata["layers"][0]["type"] == 4


@pytest.mark.parametrize("magic", [0xF993FAC8, None])
def test_older_arrays_of_mxnet(magic, tmp_path):
    values = np.arange(6, dtype="<f4")
    width = 8 if magic else 4
    array = (magic.to_bytes(4, "little") if magic else b"") + (2).to_bytes(4, "little")
    array += (2).to_bytes(width, "little") + (3).to_bytes(width, "little")
    array += bytes(8) + bytes(4) + values.tobytes()
    name = (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"w"
    start = (0x112).to_bytes(8, "little") + bytes(8) + (1).to_bytes(8, "little")
    (tmp_path / "m.params").write_bytes(start + array + name)
    np.testing.assert_array_equal(read(tmp_path / "m.params")["w"], values.reshape(2, 3))


def test_many_small_tensors_are_listed_without_being_read(tmp_path):
    write.write_bundle(tmp_path / "m", {f"{n:05}": np.full(3, n, np.int32) for n in range(3000)})
    (tmp_path / "m.data-00000-of-00001").unlink()
    assert len(read(tmp_path / "m").shapes) == 3000


def test_the_document_lists_every_format():
    text = (DATA.parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(FORMATS)

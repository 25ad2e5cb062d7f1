"""Seeded damage to a file of every format: an error in one sentence, soon, and nothing else."""

import random
import shutil
import tracemalloc
from time import perf_counter

import pytest

from bnkit.formats import CheckpointError, read
from tests.formats.files import DATA

FILES = [
    "caffe_blobs/net.caffemodel",
    "equinox_ema/model.eqx",
    "flax_linen_train_state/train_state.msgpack",
    "haiku_npz/haiku.npz",
    "keras3_frozen/model.h5",
    "keras3_keras_zip/model.keras",
    "keras3_center_scale/model.weights.h5",
    "keras3_sharded_weights/model.weights.json",
    "keras3_sharded_weights/model_00001.weights.h5",
    "mxnet_symbol/model-0006.params",
    "mxnet_symbol/model-symbol.json",
    "onnx_external_data/model.onnx",
    "onnx_if_branch/model.onnx",
    "onnx_opset9_constants/model.onnx",
    "paddle_jit/inference.json",
    "paddle_jit/inference.pdiparams",
    "paddle_pdparams/model.pdparams",
    "tf115_dtypes/all_types.data-00000-of-00001",
    "tf115_dtypes/all_types.index",
    "tf115_keras_h5/model.h5",
    "tf115_partitioned/model.ckpt-6.index",
    "tf115_snappy_index/model.ckpt-6.index",
    "tf115_v1_format/model.ckpt-6",
    "tf115_v1_snappy/model.ckpt-6",
    "tf221_object_checkpoint/ckpt-1.index",
    "torch_half_precision/bfloat16.safetensors",
]
# what is read when the named file is damaged
READ = {
    "model_00001.weights.h5": "model.weights.json",
    "model-symbol.json": "model-0006.params",
    "inference.json": "inference.pdiparams",
}
# every byte of these files is under a checksum
CHECKED = [name for name in FILES if name.startswith("tf") and not name.endswith(".h5")]
ROUNDS = 60
SECONDS = 2.0  # for one file of some kilobytes; the slowest takes 0.03 alone
MEGABYTES = 64


def damaged(content: bytes, seed: int) -> bytes:
    chance = random.Random(seed)
    data = bytearray(content)
    at = chance.randrange(len(data))
    match seed % 6:
        case 0:
            del data[at:]
        case 1:
            for _ in range(chance.choice([1, 1, 3, 20])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 2:
            size = chance.choice([1, 2, 4, 8])
            data[at : at + size] = chance.choice([b"\xff", b"\0", b"\x7f", b"\x80"]) * size
        case 3:
            other, size = chance.randrange(len(data)), chance.randrange(1, 64)
            data[at : at + size] = data[other : other + size]
        case 4:
            data[at:at] = chance.randbytes(chance.randrange(1, 16))
        case 5:
            del data[at : at + chance.randrange(1, 64)]
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name, tmp_path):
    source = DATA / name
    for file in source.parent.iterdir():
        if file.is_file() and file.name not in ("io.npz", "case.json"):
            shutil.copy(file, tmp_path)
    victim = tmp_path / source.name
    subject = tmp_path / READ.get(source.name, source.name)
    right = {key: array.tobytes() for key, array in _arrays(subject).items()}
    content, refused = source.read_bytes(), 0
    tracemalloc.start()
    try:
        for seed in range(ROUNDS):
            victim.write_bytes(damaged(content, seed))
            begun = perf_counter()
            refused += _refused(subject, right, checked=name in CHECKED)
            assert perf_counter() - begun < SECONDS, seed
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTES << 20
    assert refused > ROUNDS // 10  # the damage is real


def _arrays(path):
    checkpoint = read(path)
    return {name: checkpoint[name] for name in checkpoint if checkpoint.dtypes[name] != "string"}


def _refused(path, right, *, checked):
    """Whether a damaged file is refused; with checksums, what is read must be right."""
    checkpoint, message = _attempt(lambda: read(path))
    if checkpoint is None:
        assert message.startswith("'")
        return True
    refused = False
    for name, tensor in checkpoint.tensors.items():
        array, message = _attempt(tensor.load)
        if array is None:
            refused = True
            continue
        assert array.shape == tensor.shape
        if checked and tensor.dtype != "string":
            assert array.tobytes() == right[name], name
    return refused


def _attempt(action):
    """What an action gives, or the sentence with which it is refused."""
    try:
        return action(), ""
    except CheckpointError as error:
        message = str(error)
    assert message.endswith(".")
    assert "\n" not in message
    return None, message

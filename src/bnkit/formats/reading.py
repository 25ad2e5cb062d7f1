"""Which format a file has, by its content, and the reader of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bnkit.core.errors import CheckpointError
from bnkit.formats.caffe import is_caffe, read_caffe
from bnkit.formats.checkpoint import Checkpoint
from bnkit.formats.flax_msgpack import read_flax
from bnkit.formats.hdf5_objects import HDF5_MAGIC
from bnkit.formats.keras_files import WEIGHTS, read_keras_h5, read_keras_shards, read_keras_zip
from bnkit.formats.mapped import Mapped, map_file
from bnkit.formats.mxnet_params import MXNET_MAGIC, read_mxnet
from bnkit.formats.npy import NPY_MAGIC, read_npy, read_npz
from bnkit.formats.onnx_file import is_onnx, read_onnx
from bnkit.formats.paddle_files import is_pdiparams, read_pdiparams, read_pdparams
from bnkit.formats.safetensors_file import is_safetensors, read_safetensors
from bnkit.formats.sstable import MAGIC, table_entries
from bnkit.formats.tf_bundle import bundle_index, read_bundle
from bnkit.formats.tf_v1 import read_v1
from bnkit.formats.zip_members import ZIP_MAGIC, zip_members


@dataclass(frozen=True)
class Format:
    """A kind of file that can be read.

    Attributes:
        title: What it is.
        read: Its reader.
        recognise: Whether a file is of this kind.
        files: Names that such files usually have; they decide nothing.
    """

    title: str
    read: Callable[[Mapped], Checkpoint]
    recognise: Callable[[Mapped], bool]
    files: str


def read(path: str | Path, format: str | None = None) -> Checkpoint:
    """Read the tensors of a file, whatever framework wrote it; nothing in it is executed.

    Args:
        path: A file; or the prefix, the folder or a shard of a TensorFlow checkpoint; or the
            folder of a SavedModel.
        format: A key of `FORMATS`; by default the content decides.

    Returns:
        The checkpoint. Arrays are read, and their checksums compared, when they are asked for.

    Raises:
        CheckpointError: There is no such file, it is damaged or hostile, or of no format that is
            read; the message names the file, the place in it and what to do.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/layer.npz", kernel=np.ones((3, 2)), bias=np.zeros(2))
        ...     checkpoint = read(f"{folder}/layer.npz")
        ...     checkpoint.format, checkpoint.names, checkpoint["kernel"].shape
        ('npz', ('kernel', 'bias'), (3, 2))
    """
    named = Path(path)
    if format is not None and format not in FORMATS:
        msg = f"format: expected one of {', '.join(FORMATS)}, got {format!r}."
        raise CheckpointError(msg)
    source = map_file(bundle_index(named) or named)
    if format is not None:
        return FORMATS[format].read(source)
    for known in FORMATS.values():
        if known.recognise(source):
            return known.read(source)
    error = _unknown(source)
    raise error


def _begins(*magics: bytes) -> Callable[[Mapped], bool]:
    return lambda source: bytes(source.data[:8]).startswith(magics)


def _has_header(source: Mapped) -> bool:
    """A bundle: the entry with an empty name is a header, which begins with a number."""
    if bytes(source.data[-len(MAGIC) :]) != MAGIC:
        return False
    for key, value in table_entries(source):
        return key == b"" and bytes(value.data[:1]) == b"\x08"
    return True


def _is_table(source: Mapped) -> bool:
    return bytes(source.data[-len(MAGIC) :]) == MAGIC


def _zip_with(test: Callable[[list[str]], bool]) -> Callable[[Mapped], bool]:
    def recognise(source: Mapped) -> bool:
        return _begins(ZIP_MAGIC)(source) and test(list(zip_members(source)))

    return recognise


def _is_npy(source: Mapped) -> bool:
    start = bytes(source.data[:10_000])
    return start.startswith(NPY_MAGIC) or (start[:1] == b"{" and b"}\n" + NPY_MAGIC in start)


def _is_json_index(source: Mapped) -> bool:
    return bytes(source.data[:1]) == b"{" and b'"weight_map"' in bytes(source.data[: 1 << 20])


def _is_map(source: Mapped) -> bool:
    """A map of MessagePack; the first byte of an empty one is also that of a pickle."""
    first = source.data[0] if len(source) else 0
    return 0x81 <= first <= 0x8F or first in (0xDE, 0xDF) or bytes(source.data) == b"\x80"


def _is_pickle(source: Mapped) -> bool:
    return len(source) > 2 and source.data[0] == 0x80 and 2 <= source.data[1] <= 5


def _torch_magic(source: Mapped) -> bool:
    return b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in bytes(source.data[:32])


def _if_message(test: Callable[[Mapped], bool]) -> Callable[[Mapped], bool]:
    def recognise(source: Mapped) -> bool:
        try:
            return len(source) > 0 and test(source)
        except CheckpointError:
            return False

    return recognise


FORMATS: dict[str, Format] = {
    "tf-bundle": Format(
        "TensorFlow V2 checkpoint, TF2 object checkpoint, variables of a SavedModel",
        read_bundle,
        _has_header,
        "`PREFIX.index` and `PREFIX.data-*`",
    ),
    "tf-v1": Format("TensorFlow V1 checkpoint", read_v1, _is_table, "`model.ckpt`"),
    "keras": Format(
        "Keras 3 and tf_keras archive",
        lambda source: read_keras_zip(source, zip_members(source)),
        _zip_with(lambda names: WEIGHTS in names),
        "`.keras`",
    ),
    "npz": Format(
        "Archive of NumPy arrays (Haiku and others)",
        lambda source: read_npz(source, zip_members(source)),
        _zip_with(lambda names: bool(names) and all(name.endswith(".npy") for name in names)),
        "`.npz`",
    ),
    "keras-h5": Format(
        "Keras weights, and legacy models of Keras 1 to 3 and tf.keras",
        read_keras_h5,
        _begins(HDF5_MAGIC),
        "`.weights.h5`, `.h5`, `.hdf5`",
    ),
    "keras-shards": Format(
        "Keras weights in several files", read_keras_shards, _is_json_index, "`.weights.json`"
    ),
    "npy": Format("NumPy array, or leaves of an Equinox tree", read_npy, _is_npy, "`.npy`, `.eqx`"),
    "mxnet": Format("MXNet parameters", read_mxnet, _begins(MXNET_MAGIC), "`.params`"),
    "safetensors": Format("Safetensors", read_safetensors, is_safetensors, "`.safetensors`"),
    "paddle-pdiparams": Format(
        "Paddle inference parameters", read_pdiparams, is_pdiparams, "`.pdiparams`"
    ),
    "paddle-pdparams": Format(
        "Paddle state_dict",
        read_pdparams,
        lambda source: _is_pickle(source) and not _torch_magic(source),
        "`.pdparams`, `.pdopt`",
    ),
    "flax-msgpack": Format("Flax (linen, nnx, TrainState)", read_flax, _is_map, "`.msgpack`"),
    "onnx": Format("ONNX model", read_onnx, _if_message(is_onnx), "`.onnx`"),
    "caffe": Format("Caffe network", read_caffe, _if_message(is_caffe), "`.caffemodel`"),
}
"""The formats by name, in the order in which a file is tried."""


def _unknown(source: Mapped) -> CheckpointError:
    expected = f"{str(source.path)!r}: expected one of {', '.join(FORMATS)}"
    if _torch_magic(source) or _begins(ZIP_MAGIC)(source):
        return CheckpointError(
            f"{expected}, got a file of torch.save or another archive. Checkpoints of PyTorch are "
            "read by bnkit.sources.checkpoint.read_checkpoint, or save them as safetensors."
        )
    if not len(source):
        return CheckpointError(f"{expected}, got an empty file. Get it anew.")
    start = bytes(source.data[:8])
    return CheckpointError(
        f"{expected}, got a file that begins with {start!r}. If it is one of these formats, "
        "it is damaged; get it anew."
    )

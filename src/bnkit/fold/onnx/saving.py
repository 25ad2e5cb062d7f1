"""Writing an ONNX model, whole or not at all."""

import hashlib
import os
from pathlib import Path

from onnx import ModelProto, TensorProto

from bnkit.core.errors import OutputError
from bnkit.fold.onnx.reading import tensors

_SMALLEST = 1024  # bytes of a tensor that is worth a place in the second file
_ALIGNMENT = 4096  # a page, so that the file can be memory-mapped


def save(model: ModelProto, path: Path, *, external: bool) -> Path:
    """Write a model to a temporary name, then rename it.

    With `external`, large tensors go to `NAME.data`. Two files cannot be replaced at once, so where
    a file of that name with other content exists, the new one gets a name of its own and the
    model that points to the old one stays whole.

    Args:
        model: Is not changed.
        path: The new file.
        external: Whether to use a second file.

    Returns:
        `path`.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        if external:
            model, data = _outsourced(model, path)
            if data is not None:
                _replace(*data)
        _replace(path, model.SerializeToString())
    except OSError as error:
        msg = f"{str(path)!r}: expected to write the model there, got: {error.strerror or error}."
        raise OutputError(msg) from error
    return path


def _outsourced(model: ModelProto, path: Path) -> tuple[ModelProto, tuple[Path, bytes] | None]:
    """A copy that points to a second file, and that file."""
    copy = ModelProto()
    copy.CopyFrom(model)
    chunks, size, places = [], 0, []
    for tensor in tensors(copy):
        raw = tensor.raw_data
        if len(raw) < _SMALLEST:
            continue
        padding = -size % _ALIGNMENT
        chunks += [bytes(padding), raw]
        places.append((tensor, size + padding, len(raw)))
        size += padding + len(raw)
    if not places:
        return copy, None
    data = b"".join(chunks)
    target = _free_name(path, data)
    for tensor, offset, length in places:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": target.name, "offset": offset, "length": length}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
    return copy, (target, data)


def _free_name(path: Path, data: bytes) -> Path:
    plain = path.with_name(f"{path.name}.data")
    if not plain.exists() or (plain.is_file() and plain.read_bytes() == data):
        return plain
    return path.with_name(f"{path.name}.{hashlib.sha256(data).hexdigest()[:12]}.data")


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

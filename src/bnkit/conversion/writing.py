"""New files with converted tensors: a copy of the target with its numbers replaced."""

import io
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bnkit.conversion.keras_models import KerasModel
from bnkit.conversion.msgpack_writer import write_flax
from bnkit.conversion.plan import check_shared
from bnkit.core import InputError, OutputError
from bnkit.core.files import check_writable
from bnkit.formats import Checkpoint
from bnkit.sources.checkpoint import check_new_file

if TYPE_CHECKING:
    from bnkit.conversion.plan import ConversionPlan

Arrays = Mapping[str, np.ndarray]
_MODEL_ENDINGS = (".pt", ".pth", ".safetensors", ".npz")
_KERAS_ENDINGS = (".keras", ".weights.h5")


def write_plan(plan: "ConversionPlan", path: Path, *, replace: bool = False) -> Path:
    """Write the target with the tensors of a plan, to a temporary name, then rename it.

    Args:
        plan: What is written; its target is not changed.
        path: The new file.
        replace: Whether it may take the place of an older one.

    Returns:
        The path.

    Raises:
        ConversionError: Two layers of the target share a tensor and are given different numbers.
        InputError: The target is of a format that is not written.
        OutputError: The file exists, or cannot be written.
    """
    check_shared(plan)
    target = plan.target
    if isinstance(target, Checkpoint):
        write = _WRITERS.get(target.format)
        if write is None:
            msg = (
                f"{str(target.path)!r}: expected a target of a format that is written "
                f"({', '.join(_WRITERS)}, or a model), got {target.format}."
            )
            raise InputError(msg)
        check_new_file(path, like=target.path, replace=replace)
        return _atomically(path, lambda new: write(target, plan.tensors, new))
    if isinstance(target, KerasModel):
        _check_ending(path, _KERAS_ENDINGS, replace=replace)
        model = plan.apply()
        ending = ".keras" if path.suffix == ".keras" else ".weights.h5"
        save = model.save if ending == ".keras" else model.save_weights
        return _atomically(path, save, ending)
    if isinstance(target, nn.Module):
        state = _state(target, plan.tensors)
    else:
        state = {n: plan.tensors.get(n, v) for n, v in target.items()}
    _check_ending(path, _MODEL_ENDINGS, replace=replace)
    return _atomically(path, lambda new: _write_state(state, path.suffix, new))


def _check_ending(path: Path, endings: tuple[str, ...], *, replace: bool) -> None:
    if not path.name.endswith(endings):
        msg = f"{str(path)!r}: expected a new file that ends in {', '.join(endings)}."
        raise OutputError(msg)
    if path.exists() and not replace:
        msg = (
            f"{str(path)!r}: expected the name of a new file, got one that exists. Choose another, "
            "or pass replace=True (--force)."
        )
        raise OutputError(msg)
    check_writable(path, advice="Choose another.")


def _atomically(path: Path, write: Callable[[Path], Any], ending: str = ".tmp") -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{ending}")
    try:
        write(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"{str(path)!r}: expected to write a file there, got: {reason}."
        raise OutputError(msg) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _state(model: nn.Module, tensors: Arrays) -> dict[str, Tensor]:
    found = {}
    for name, tensor in model.state_dict().items():
        if name in tensors:
            tensor = torch.from_numpy(tensors[name].copy()).to(tensor.dtype)
        found[name] = tensor.detach().cpu().clone().contiguous()
    return found


def _write_state(state: Mapping[str, Any], ending: str, path: Path) -> None:
    if ending in (".pt", ".pth"):
        torch.save({n: torch.as_tensor(v) for n, v in state.items()}, path)
    elif ending == ".safetensors":
        from safetensors.torch import save_file

        save_file({n: torch.as_tensor(v).contiguous() for n, v in state.items()}, path)
    else:
        arrays = {
            n: v.float().numpy() if _is_narrow(v) else np.asarray(v) for n, v in state.items()
        }
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def _all_arrays(file: Checkpoint, tensors: Arrays) -> dict[str, np.ndarray]:
    narrow = [n for n, d in file.dtypes.items() if d == "bfloat16" or d.startswith("float8")]
    if narrow:
        msg = (
            f"{str(file.path)!r}: expected tensors of NumPy's dtypes in a file to be rewritten, "
            f"got {file.dtypes[narrow[0]]} in {narrow[0]!r}."
        )
        raise InputError(msg)
    return {n: tensors.get(n, file[n]) for n in file.tensors}


def _npz(file: Checkpoint, tensors: Arrays, path: Path) -> None:
    with path.open("wb") as out:
        np.savez(out, allow_pickle=False, **_all_arrays(file, tensors))


def _equinox(file: Checkpoint, tensors: Arrays, path: Path) -> None:
    if file.metadata.get("header") is not None:
        msg = f"{str(file.path)!r}: expected blocks alone, got a first line of text before them."
        raise InputError(msg)
    with path.open("wb") as out:
        for array in _all_arrays(file, tensors).values():
            np.save(out, array, allow_pickle=False)


def _safetensors(file: Checkpoint, tensors: Arrays, path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(file.path, "pt") as old:
        kept = {n: old.get_tensor(n) for n in old.keys()}  # noqa: SIM118
        for name, array in tensors.items():
            kept[name] = torch.from_numpy(array.copy()).to(kept[name].dtype)
        save_file({n: t.contiguous() for n, t in kept.items()}, path, old.metadata())


def _hdf5(file: Checkpoint, tensors: Arrays, path: Path) -> None:
    shutil.copyfile(file.path, path)
    _fill_hdf5(path, tensors)


def _fill_hdf5(file: Path | io.BytesIO, tensors: Arrays) -> None:
    try:
        import h5py
    except ImportError as error:
        msg = "writing HDF5: expected the package h5py, got none. pip install 'bnkit[keras]'."
        raise InputError(msg) from error
    with h5py.File(file, "r+") as opened:
        for name, array in tensors.items():
            opened[name][...] = array  # pyright: ignore[reportIndexIssue]


def _keras_archive(file: Checkpoint, tensors: Arrays, path: Path) -> None:
    with zipfile.ZipFile(file.path) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename == "model.weights.h5":
                weights = io.BytesIO(data)
                _fill_hdf5(weights, tensors)
                data = weights.getvalue()
            new.writestr(member, data)


def _onnx(file: Checkpoint, tensors: Arrays, path: Path) -> None:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        msg = "writing ONNX: expected the package onnx, got none. pip install 'bnkit[onnx]'."
        raise InputError(msg) from error
    model = onnx.load(str(file.path))
    left = dict(tensors)
    for one in model.graph.initializer:
        if one.name in left:
            one.CopyFrom(numpy_helper.from_array(left.pop(one.name), one.name))
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in left:
            value = numpy_helper.from_array(left.pop(node.output[0]))
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", value))
    if left:
        msg = (
            f"{str(file.path)!r}: expected initialisers of the main graph, got {sorted(left)[0]!r} "
            "elsewhere."
        )
        raise InputError(msg)
    with path.open("wb") as out:
        out.write(model.SerializeToString())


_WRITERS: dict[str, Callable[[Checkpoint, Arrays, Path], None]] = {
    "npz": _npz,
    "safetensors": _safetensors,
    "keras-weights-h5": _hdf5,
    "keras-h5": _hdf5,
    "keras": _keras_archive,
    "flax-msgpack": write_flax,
    "equinox": _equinox,
    "onnx": _onnx,
}
FORMATS_WRITTEN = tuple(_WRITERS)
"""Formats of files that can stand as a pattern for a new one; models are written beside."""

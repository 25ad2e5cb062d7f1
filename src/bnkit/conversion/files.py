"""A file, or a dictionary of arrays, as one side of a conversion."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from bnkit.conversion.equinox_layers import equinox_layers
from bnkit.conversion.gather import Side, gather, shadows
from bnkit.conversion.layer import Layer
from bnkit.conversion.modules import to_numpy
from bnkit.conversion.onnx_layers import onnx_layers
from bnkit.conversion.worlds import World, world
from bnkit.core import InputError
from bnkit.formats import Checkpoint
from bnkit.formats.by_name import entries_by_name

# Formats of one framework alone; the others are told apart by the names in the file.
_FORMATS = {
    "tf": "tf1",
    "keras-h5": "tf2",
    "keras": "keras3",
    "flax": "flax",
    "equinox": "equinox",
    "onnx": "onnx",
    "caffe": "caffe",
    "paddle": "paddle",
    "mxnet": "mxnet",
    "torch": "torch",
}
_IN_ORDER = ("torch", "equinox", "onnx", "caffe", "paddle-pdparams", "mxnet")


def file_side(
    file: Mapping[str, Any], named: str | None = None, *, root: str = "", averages: bool = False
) -> Side:
    """The layers of a file.

    Args:
        file: A `bnkit.formats.Checkpoint`, or arrays by name.
        named: The framework that wrote it; by default as its format and its names say.
        root: Only tensors whose names begin so; the rest is left aside.
        averages: Take the exponential moving averages of TensorFlow where the file has them.

    Returns:
        Its layers.

    Raises:
        InputError: An unknown framework, nothing under the root, or no averages.
    """
    title = str(file.path) if isinstance(file, Checkpoint) else "the dictionary"
    found = world(named) if named else _world_of(file)
    shapes, dtypes = _described(file)
    outside = {n: f"not under {root!r}" for n in shapes if not n.startswith(root)}
    if shapes and len(outside) == len(shapes):
        msg = f"{title}: expected tensors under {root!r}, got none. It has: {_some(shapes)}."
        raise InputError(msg)
    shapes = {n: s for n, s in shapes.items() if n not in outside}
    layers, aside = _layers(file, shapes, dtypes, found)
    swap = _shadows(title, shapes) if averages else {}
    aside = {n: r for n, r in aside.items() if n not in swap.values()}
    return Side(
        title=title,
        world=found,
        layers=layers,
        ordered=_ordered(file, found),
        read=lambda name: _array(file[swap.get(name, name)]),
        dtypes=dtypes,
        aside={**outside, **aside},
    )


def _layers(
    file: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    found: World,
) -> tuple[tuple[Layer, ...], dict[str, str]]:
    if isinstance(file, Checkpoint) and file.format == "onnx":
        return onnx_layers(file)
    if isinstance(file, Checkpoint) and found.key == "equinox":
        return equinox_layers(file)
    return gather(shapes, dtypes, _entries(file, shapes), found)


def _array(value: Any) -> np.ndarray:
    return to_numpy(value) if isinstance(value, Tensor) else np.asarray(value)


def _described(
    file: Mapping[str, Any],
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    if isinstance(file, Checkpoint):
        return file.shapes, file.dtypes
    shapes = {n: tuple(np.shape(v)) for n, v in file.items()}
    return shapes, {n: _dtype(v) for n, v in file.items()}


def _dtype(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    dtype = str(np.asarray(value).dtype if dtype is None else dtype).removeprefix("torch.")
    return "string" if dtype == "object" or dtype[:1] in "<|" else dtype


def _entries(file: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[Any]:
    if isinstance(file, Checkpoint):
        return [e for e in file.batch_norms if shapes.keys() >= set(e.tensors.values())]
    return list(entries_by_name(shapes))


def _shadows(title: str, names: Mapping[str, Any]) -> dict[str, str]:
    found = shadows(names)
    if not found:
        msg = f"{title}: expected exponential moving averages, got none in the file."
        raise InputError(msg)
    return found


def _world_of(file: Mapping[str, Any]) -> World:
    if isinstance(file, Checkpoint):
        for start, name in _FORMATS.items():
            if file.format.startswith(start):
                return _version_of(file, name)
    return _by_names(file)


def _version_of(file: Checkpoint, name: str) -> World:
    if name == "tf1" and any(".ATTRIBUTES/" in n for n in file.tensors):
        return world("tf2")
    if name in ("tf2", "keras3"):
        positions = any("/vars/" in n for n in file.tensors)
        return world("keras3" if positions else "tf2")
    return world(name)


# What only one framework writes, in the order in which it is looked for.
_SIGNS = (
    ("haiku", ("mean_ema/",)),
    ("flax", ("batch_stats",)),
    ("tf2", (".ATTRIBUTES/",)),
    ("keras3", ("/vars/",)),
    ("tf1", ("moving_variance", "/gamma", "/beta")),
    ("mxnet", ("gamma", "arg:")),
    ("paddle", ("_variance",)),
    ("torch", ("running_var",)),
    ("flax", ("kernel",)),
    ("caffe", ("/0",)),
)


def _by_names(file: Mapping[str, Any]) -> World:
    for name, signs in _SIGNS:
        if any(sign in n for n in file for sign in signs):
            return world(name)
    return world("torch")


def _ordered(file: Mapping[str, Any], found: World) -> bool:
    """Whether tensors stand in the file as they were made; many formats sort them."""
    if not isinstance(file, Checkpoint):
        return found.key == "torch"
    return file.format.startswith(_IN_ORDER)


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:5]) + (", ..." if len(names) > 5 else "")

"""Paddle: `.pdparams` of `paddle.save`, and `.pdiparams` of `paddle.jit.save` with its program."""

from functools import partial
from typing import Any

import numpy as np

from bnkit.formats.by_name import entries_by_name
from bnkit.formats.checkpoint import BatchNormEntry, Checkpoint, StoredTensor
from bnkit.formats.dtypes import SIZES, byte_count, decode
from bnkit.formats.json_text import parse_json
from bnkit.formats.mapped import Mapped, beside, map_file
from bnkit.formats.pickled_arrays import PickledArray, read_pickled_arrays
from bnkit.formats.wire import parse

_DTYPES = {
    **dict(enumerate(["bool", "int16", "int32", "int64", "float16", "float32", "float64"])),
    20: "uint8",
    21: "int8",
    22: "bfloat16",
    23: "complex64",
    24: "complex128",
}
_INPUTS = ("running_mean", "running_var", "weight", "bias")  # of the operator, behind its input


def read_pdparams(source: Mapped) -> Checkpoint:
    """Read a state_dict, by interpreting its pickle as data.

    Args:
        source: The file.

    Returns:
        The checkpoint; names inside of inner dictionaries are joined by `/`. Numbers and text are
        in the metadata `others`; of what is neither, there is the name of its type.

    Raises:
        CheckpointError: The pickle holds anything else, or is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    others: dict[str, Any] = {}
    waiting, seen = [("", read_pickled_arrays(source))], set()
    while waiting:
        prefix, found = waiting.pop(0)
        if id(found) in seen:
            raise source.error(f"dictionary {prefix!r:.120}", "a tree", "one with two parents")
        seen.add(id(found))
        for key, value in found.items():
            name = source.named(f"{prefix}{key}", "name of a tensor")
            array = value[1] if isinstance(value, tuple) and len(value) == 2 else value
            if isinstance(array, PickledArray):
                if name in tensors:
                    raise source.error(f"tensor {name!r}", "names that differ", "this one twice")
                tensors[name] = _pickled(source, name, array)
            elif isinstance(value, dict):
                waiting.append((f"{name}/", value))
            else:
                plain = value is None or isinstance(value, str | int | float)
                others[name] = value if plain else type(value).__name__
    return Checkpoint(
        source.path, "paddle-pdparams", tensors, {"others": others}, entries_by_name(tensors)
    )


def _pickled(source: Mapped, name: str, array: PickledArray) -> StoredTensor:
    place = f"tensor {name!r}"
    text = array.dtype.text if array.dtype else ""
    try:
        dtype = np.dtype(text).name
    except TypeError as error:
        raise source.error(place, "a dtype of NumPy", repr(text)[:80]) from error
    order = array.dtype.order if array.dtype else "="
    if dtype not in SIZES or order not in "<|=":
        raise source.error(place, f"little-endian {', '.join(SIZES)}", f"{text!r:.40} {order!r}")
    wanted = byte_count(source, place, dtype, array.shape)
    if len(array.data) != wanted:
        raise source.error(place, f"{wanted} bytes", f"{len(array.data)}")
    load = partial(_unpickled, source, place, array, dtype)
    return StoredTensor(name, dtype, array.shape, load)


def _unpickled(source: Mapped, place: str, array: PickledArray, dtype: str) -> np.ndarray:
    shape = array.shape[::-1] if array.fortran else array.shape
    found = decode(source, place, array.data, dtype, shape)
    return found.T if array.fortran else found


def is_pdiparams(source: Mapped) -> bool:
    """Recognise the format: two versions of zero around the number of levels, also zero.

    Args:
        source: The file.

    Returns:
        Whether it begins like a tensor of Paddle.
    """
    if len(source) < 20 or any(source.data[:16]):
        return False
    return 0 < source.number(16, 4, "size of a description") <= len(source) - 20


def read_pdiparams(source: Mapped) -> Checkpoint:
    """Read parameters one after another.

    Args:
        source: The file.

    Returns:
        The checkpoint. The names are in the program `STEM.json` beside it, which has them in
        another order: parameters are stored sorted by name. Without it they are `0`, `1`, ...

    Raises:
        CheckpointError: The file is damaged, or the program is that of other parameters.
    """
    at, stored = 0, []
    while at < len(source):
        one, at = _one(source, at, f"tensor {len(stored)}")
        stored.append(one)
    operations = _operations(source)
    names = sorted(_parameters(operations))
    if not operations:
        names = [str(number) for number in range(len(stored))]
    elif len(names) != len(stored) or len(set(names)) != len(names):
        raise source.error("program", f"the names of {len(stored)} parameters", f"{len(names)}")
    tensors = {
        name: StoredTensor(name, dtype, shape, load)
        for name, (dtype, shape, load) in zip(names, stored, strict=True)
    }
    entries = _entries(operations, tensors)
    return Checkpoint(source.path, "paddle-pdiparams", tensors, {}, entries)


def _one(source: Mapped, at: int, place: str) -> tuple[tuple, int]:
    if source.number(at, 4, place) or source.number(at + 4, 8, place):
        raise source.error(f"{place} at byte {at}", "a dense tensor of Paddle", "another")
    if source.number(at + 12, 4, place):
        raise source.error(f"{place} at byte {at}", "version 0", "another")
    size = source.number(at + 16, 4, place)
    described = Mapped(source.path, source.take(at + 20, size, place), place)
    message = parse(described, "description")
    at += 20 + size
    code = message.integer(1, -1)
    if code not in _DTYPES:
        raise source.error(place, "a dtype of Paddle", f"number {code}")
    dtype, shape = _DTYPES[code], message.integers(2)
    size = byte_count(source, place, dtype, shape)
    data = source.take(at, size, place)
    return (dtype, shape, partial(decode, source, place, data, dtype, shape)), at + size


def _operations(source: Mapped) -> list[dict[str, Any]]:
    """The operations of the program; none where there is no program."""
    name = f"{source.path.stem}.json"
    if not (source.path.parent / name).exists():
        return []
    program = map_file(beside(source.path, name))
    document = parse_json(program, program.data, "program")
    try:
        found = document["program"]["regions"][0]["blocks"][0]["ops"]
        good = all(isinstance(one, dict) and isinstance(one.get("#"), str) for one in found)
    except (KeyError, IndexError, TypeError) as error:
        raise program.error("program", "the operations of a PIR program", "none") from error
    if not good or not found:
        raise program.error("program", "the operations of a PIR program", "something else")
    return found


def _parameters(operations: list[dict[str, Any]]) -> dict[str, Any]:
    """Number of the value that each parameter is, by its name."""
    found = {}
    for one in operations:
        attributes, output = one.get("A"), one.get("O")
        if one["#"] == "p" and isinstance(attributes, list) and isinstance(output, dict):
            found[str(attributes[-1] if attributes else "")] = output.get("%")
    return found


def _entries(
    operations: list[dict[str, Any]], tensors: dict[str, StoredTensor]
) -> tuple[BatchNormEntry, ...]:
    values = {
        value: name for name, value in _parameters(operations).items() if isinstance(value, int)
    }
    found = []
    for one in operations:
        if one["#"].rpartition(".")[2].rstrip("_") != "batch_norm":
            continue
        try:
            options = {a["N"]: a["AT"]["D"] for a in one["A"]}
            inputs = [values.get(i["%"]) for i in one["I"]][1:]
            eps, keep = float(options["epsilon"]), float(options["momentum"])
        except (KeyError, TypeError, ValueError):
            continue
        names = {role: name for role, name in zip(_INPUTS, inputs, strict=False) if name in tensors}
        if {"running_mean", "running_var"} <= names.keys():
            layer = names["running_mean"].rpartition(".")[0]
            axis = -1 if str(options.get("data_format", "")).endswith("C") else 1
            found.append(BatchNormEntry(layer, names, eps, 1 - keep, axis, options))
    return tuple(found)

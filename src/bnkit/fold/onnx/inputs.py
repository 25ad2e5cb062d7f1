"""Inputs for a model: checked where they are given, made up where they are not."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from bnkit.core.errors import InputError

Arrays = dict[str, np.ndarray]

_BATCH = 2
# What unnamed spatial sizes and lengths may be; the first that the model takes is used.
_SIZES = (16, 32, 64, 224, 8, 4)
_LARGEST = 2**24  # elements of all inputs that are made up
_INTEGERS = 2  # made-up integers are 0 or 1: an index that every table has
_SEED = 20151114


def inputs_of(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that callers have to give: those without an initialiser."""
    given = {t.name for t in model.graph.initializer}
    given |= {s.values.name for s in model.graph.sparse_initializer}
    return [v for v in model.graph.input if v.name not in given]


def check_given(model: ModelProto, inputs: Any) -> list[Arrays]:
    """Given inputs as a list of dictionaries of arrays.

    Args:
        model: The model.
        inputs: A dictionary of arrays by name, or a sequence of them.

    Returns:
        The list.

    Raises:
        InputError: Names, types or ranks are not those of the model.
    """
    sets = [inputs] if isinstance(inputs, Mapping) else inputs
    if not isinstance(sets, Sequence) or not sets or not all(isinstance(s, Mapping) for s in sets):
        msg = f"inputs: expected a dictionary of arrays by name, got {type(inputs).__name__}."
        raise InputError(msg)
    wanted = {v.name: v for v in inputs_of(model)}
    found = []
    for one in sets:
        arrays = {str(n): np.asarray(a) for n, a in one.items()}
        if arrays.keys() != wanted.keys():
            msg = f"inputs: expected {sorted(wanted)}, got {sorted(arrays)}."
            raise InputError(msg)
        for name, array in arrays.items():
            _check_array(wanted[name], array)
        found.append(arrays)
    return found


def make_up(model: ModelProto) -> list[list[Arrays]]:
    """Sets of inputs to try, from the declared types and shapes.

    Normal numbers; for integers 0 and 1. Where sizes are not declared, the first axis is 2 and the
    others are each of a few usual sizes in turn.

    Args:
        model: The model.

    Returns:
        Candidates, of which a model need take only one.

    Raises:
        InputError: An input is no tensor, has an unknown rank, or is too large.
    """
    values = inputs_of(model)
    open_sizes = any(_is_open(v) for v in values)
    return [[_make(values, size)] for size in (_SIZES if open_sizes else _SIZES[:1])]


def _make(values: Sequence[ValueInfoProto], size: int) -> Arrays:
    generator = np.random.default_rng(_SEED)
    shapes = [_shape(v, size) for v in values]
    if sum(np.prod(s, dtype=float) for s in shapes) > _LARGEST:
        got = [s[:8] for s in shapes[:4]]
        msg = f"inputs: expected sizes that can be made up, got {got}. {_GIVE}"
        raise InputError(msg)
    return {v.name: _array(v, s, generator) for v, s in zip(values, shapes, strict=True)}


def _shape(value: ValueInfoProto, size: int) -> list[int]:
    shape = [
        int(d.dim_value) if d.WhichOneof("value") == "dim_value" else (_BATCH if i == 0 else size)
        for i, d in enumerate(_dims(value))
    ]
    if min(shape, default=1) < 0:
        msg = f"input {value.name!r}: expected sizes that are not negative, got {shape[:8]}."
        raise InputError(msg)
    return shape


def _array(value: ValueInfoProto, shape: list[int], generator: np.random.Generator) -> np.ndarray:
    dtype = _dtype(value)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(0, _INTEGERS, shape).astype(dtype)
    return np.asarray(generator.standard_normal(shape)).astype(dtype)


def _check_array(value: ValueInfoProto, array: np.ndarray) -> None:
    label = f"input {value.name!r}"
    wanted = _dtype(value)
    if array.dtype != wanted:
        msg = f"{label}: expected {wanted}, got {array.dtype}."
        raise InputError(msg)
    if not value.type.tensor_type.HasField("shape"):
        return
    dims = [d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in _dims(value)]
    fits = len(dims) == array.ndim and all(
        d is None or d == s for d, s in zip(dims, array.shape, strict=True)
    )
    if not fits:
        text = ", ".join("?" if d is None else str(d) for d in dims)
        msg = f"{label}: expected the shape ({text}), got {array.shape}."
        raise InputError(msg)


def _is_open(value: ValueInfoProto) -> bool:
    return any(d.WhichOneof("value") != "dim_value" for d in _dims(value)[1:])


def _dims(value: ValueInfoProto) -> Any:
    if not value.type.tensor_type.HasField("shape"):
        msg = f"input {value.name!r}: expected a declared rank, got none. {_GIVE}"
        raise InputError(msg)
    return value.type.tensor_type.shape.dim


def _dtype(value: ValueInfoProto) -> np.dtype:
    kind = value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        msg = f"input {value.name!r}: expected a tensor of numbers, got something else. {_GIVE}"
        raise InputError(msg)
    try:
        return helper.tensor_dtype_to_np_dtype(kind)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"input {value.name!r}: expected a known type, got {kind}."
        raise InputError(msg) from error


_GIVE = "Pass inputs={name: array}."

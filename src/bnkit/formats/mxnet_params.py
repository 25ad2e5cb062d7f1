"""MXNet's `.params`: a list of arrays, a list of names; the symbol beside it, if there is one."""

from functools import partial
from pathlib import Path
from typing import Any

from bnkit.formats.by_name import entries_by_name
from bnkit.formats.checkpoint import BatchNormEntry, Checkpoint, StoredTensor
from bnkit.formats.dtypes import MAX_RANK, byte_count, decode
from bnkit.formats.json_text import expect_object, parse_json
from bnkit.formats.mapped import Mapped, beside, map_file

MXNET_MAGIC = (0x112).to_bytes(8, "little")
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = dict(
    enumerate(
        [
            *("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool"),
            *("int16", "uint16", "uint32", "uint64", "bfloat16"),
        ]
    )
)
_INPUTS = ("weight", "bias", "running_mean", "running_var")
_DEFAULTS = {"eps": "1e-3", "momentum": "0.9", "axis": "1"}  # of the operator BatchNorm


def read_mxnet(source: Mapped) -> Checkpoint:
    """Read arrays with their names.

    Args:
        source: The file.

    Returns:
        The checkpoint. If the file is `PREFIX-0001.params` and `PREFIX-symbol.json` is there,
        batch norms are described by it.

    Raises:
        CheckpointError: The file is damaged, or an array is sparse.
    """
    count = source.number(16, 8, "number of arrays")
    at, arrays = 24, []
    for number in range(count):
        array, at = _array(source, at, f"array {number}")
        arrays.append(array)
    names, at = _names(source, at)
    if at != len(source):
        raise source.error("end", f"byte {at}", f"{len(source)} bytes")
    if not names and count:
        names = [str(number) for number in range(count)]
    if len(names) != count or len(set(names)) != count:
        raise source.error("names", f"{count} different ones", f"{len(set(names))}")
    tensors = {
        name: StoredTensor(name, dtype, shape, load)
        for name, (dtype, shape, load) in zip(names, arrays, strict=True)
    }
    symbol = _symbol(source.path)
    metadata = {"symbol": symbol} if symbol is not None else {}
    entries = _symbol_entries(symbol, tensors) if symbol else entries_by_name(tensors)
    return Checkpoint(source.path, "mxnet", tensors, metadata, entries)


def _array(source: Mapped, at: int, place: str) -> tuple[tuple, int]:
    magic = source.number(at, 4, place)
    if magic in (_V2, _V3):
        if source.number(at + 4, 4, place):
            raise source.error(place, "a dense array", "a sparse one")
        at += 8
    elif magic == _V1:
        at += 4
    rank = source.number(at, 4, place)
    if rank > MAX_RANK:
        raise source.error(place, f"an array of at most {MAX_RANK} dimensions", f"{rank}")
    width = 8 if magic in (_V1, _V2, _V3) else 4
    at += 4
    shape = tuple(source.number(at + width * i, width, place) for i in range(rank))
    at += width * rank + 8  # the device that it was on
    code = source.number(at, 4, place)
    if code not in _DTYPES:
        raise source.error(place, "a dtype of MXNet", f"number {code}")
    dtype, at = _DTYPES[code], at + 4
    if rank == 0 and magic != _V3:
        raise source.error(place, "an array with a shape", "one that was never filled")
    size = byte_count(source, place, dtype, shape)
    data = source.take(at, size, place)
    return (dtype, shape, partial(decode, source, place, data, dtype, shape)), at + size


def _names(source: Mapped, at: int) -> tuple[list[str], int]:
    count, at = source.number(at, 8, "number of names"), at + 8
    names = []
    for _ in range(count):
        length, at = source.number(at, 8, "length of a name"), at + 8
        names.append(source.text(source.take(at, length, "name"), "name"))
        at += length
    return names, at


def _symbol(path: Path) -> dict[str, Any] | None:
    prefix, _, epoch = path.stem.rpartition("-")
    if path.suffix != ".params" or not prefix or not epoch.isdecimal():
        return None
    name = f"{prefix}-symbol.json"
    if not (path.parent / name).exists():
        return None
    found = map_file(beside(path, name))
    return expect_object(found, parse_json(found, found.data, "symbol"), "symbol")


def _symbol_entries(
    symbol: dict[str, Any], tensors: dict[str, StoredTensor]
) -> tuple[BatchNormEntry, ...]:
    nodes: list[Any] = symbol["nodes"] if isinstance(symbol.get("nodes"), list) else []
    found = []
    for node in nodes:
        if isinstance(node, dict) and node.get("op") in ("BatchNorm", "SyncBatchNorm"):
            entry = _symbol_entry(node, nodes, tensors)
            found += [entry] if entry else []
    return tuple(found)


def _symbol_entry(
    node: dict[str, Any], nodes: list[Any], tensors: dict[str, StoredTensor]
) -> BatchNormEntry | None:
    attributes = node.get("attrs") or node.get("param") or {}
    try:
        inputs = [str(nodes[one[0]]["name"]) for one in node["inputs"][1:5]]
        options = {**_DEFAULTS, **attributes}
        eps, keep, axis = float(options["eps"]), float(options["momentum"]), int(options["axis"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    names = {}
    for role, name in zip(_INPUTS, inputs, strict=False):
        for stored in (f"arg:{name}", f"aux:{name}", name):
            if stored in tensors:
                names[role] = stored
                break
    if not {"running_mean", "running_var"} <= names.keys():
        return None
    return BatchNormEntry(str(node.get("name")), names, eps, 1 - keep, axis, dict(attributes))

"""Safetensors: a JSON header, then the bytes of all tensors."""

from functools import partial
from typing import Any, TypeGuard

from bnkit.formats.by_name import entries_by_name
from bnkit.formats.checkpoint import Checkpoint, StoredTensor
from bnkit.formats.dtypes import byte_count, decode
from bnkit.formats.json_text import expect_object, parse_json
from bnkit.formats.mapped import Mapped

_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BOOL": "bool",
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_MAX_HEADER = 100_000_000  # bytes, as in the library of the format


def is_safetensors(source: Mapped) -> bool:
    """Recognise the format.

    Args:
        source: The file.

    Returns:
        Whether a header of a possible length begins as one.
    """
    return (
        len(source) > 9
        and bytes(source.data[8:9]) == b"{"
        and 0 < _length(source) <= len(source) - 8
    )


def read_safetensors(source: Mapped) -> Checkpoint:
    """Read a file.

    Args:
        source: Its bytes.

    Returns:
        The checkpoint; arrays are views of the mapped file.

    Raises:
        CheckpointError: The header is damaged, or tensors overlap, leave gaps or lie outside.
    """
    length = _length(source)
    if length > _MAX_HEADER:
        raise source.error("header", f"at most {_MAX_HEADER} bytes", f"{length}")
    header = parse_json(source, source.take(8, length, "header"), "header")
    header = expect_object(source, header, "header")
    metadata = expect_object(source, header.pop("__metadata__", {}), "header, __metadata__")
    content = Mapped(source.path, source.data[8 + length :], source.part)
    spans, tensors = {}, {}
    for name, value in header.items():
        tensors[name], spans[name] = _tensor(content, name, expect_object(source, value, name))
    end = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if start != end:
            got = f"bytes {start} to {stop} after byte {end}"
            raise source.error(f"tensor {name!r}", "tensors without gaps or overlaps", got)
        end = stop
    if end != len(content):
        raise source.error("end", f"{end} bytes of tensors", f"{len(content)}")
    return Checkpoint(source.path, "safetensors", tensors, metadata, entries_by_name(tensors))


def _length(source: Mapped) -> int:
    return source.number(0, 8, "length of the header")


def _tensor(
    content: Mapped, name: str, value: dict[str, Any]
) -> tuple[StoredTensor, tuple[int, int]]:
    place = f"tensor {name!r}"
    dtype, shape, span = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise content.error(place, f"a dtype of {', '.join(_DTYPES)}", repr(dtype)[:80])
    if not _integers(shape) or not _integers(span) or len(span) != 2:
        raise content.error(place, "a shape and two offsets", f"{shape!r:.80} and {span!r:.80}")
    dtype, (start, stop) = _DTYPES[dtype], span
    wanted = byte_count(content, place, dtype, tuple(shape))
    if stop - start != wanted:
        raise content.error(place, f"{wanted} bytes for {dtype} {shape}", f"{stop - start}")
    data = content.take(start, wanted, place)
    load = partial(decode, content, place, data, dtype, tuple(shape))
    return StoredTensor(name, dtype, tuple(shape), load), (start, stop)


def _integers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int for one in value)

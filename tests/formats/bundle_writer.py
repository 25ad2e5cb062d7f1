"""A small writer of TensorFlow bundles: for attacks, for laws, and for the benchmark."""

from pathlib import Path

from bnkit.formats.crc32c import crc32c

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9}


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fixed32(number: int, value: int) -> bytes:
    return varint(number << 3 | 5) + value.to_bytes(4, "little")


def masked(checksum: int) -> int:
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def shape(sizes) -> bytes:
    return b"".join(field(2, field(1, size)) for size in sizes)


def extents(spans) -> bytes:
    """A slice: (start, length) of each dimension, None for all of it."""
    parts = [b"" if one is None else field(1, one[0]) + field(2, one[1]) for one in spans]
    return b"".join(field(1, part) for part in parts)


def entry(dtype, sizes, *, offset=0, size=0, checksum=0, shard=0, slices=()) -> bytes:
    """A BundleEntryProto; `checksum` is that of the bytes, unmasked."""
    return (
        field(1, DTYPES.get(dtype, dtype))
        + field(2, shape(sizes))
        + field(3, shard)
        + field(4, offset)
        + field(5, size)
        + fixed32(6, masked(checksum))
        + b"".join(field(7, extents(one)) for one in slices)
    )


def header(shards=1, endianness=0) -> bytes:
    return field(1, shards) + (field(2, 1) if endianness else b"") + field(3, field(1, 1))


def block(entries) -> bytes:
    body = b"".join(
        varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in entries
    )
    return body + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def sealed(content: bytes, compression: int = 0) -> bytes:
    stored = content + bytes([compression])
    return stored + masked(crc32c(stored)).to_bytes(4, "little")


def table(blocks, compression: int = 0) -> bytes:
    """A table of ready blocks, each with its last key."""
    out, handles = b"", []
    for last, content in blocks:
        handles.append((last, varint(len(out)) + varint(len(content))))
        out += sealed(content, compression)
    filters = block([])
    filter_handle = varint(len(out)) + varint(len(filters))
    out += sealed(filters)
    index = block(handles)
    footer = filter_handle + varint(len(out)) + varint(len(index))
    return out + sealed(index) + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def index(entries: dict[bytes, bytes]) -> bytes:
    """The index of a bundle, in one block."""
    ordered = sorted(entries.items())
    return table([(ordered[-1][0], block(ordered))])


def write_bundle(prefix: Path, tensors) -> None:
    """Write arrays by name as a bundle of one shard."""
    entries, offset = {b"": header()}, 0
    with prefix.with_name(f"{prefix.name}.data-00000-of-00001").open("wb") as data:
        for name, array in tensors.items():
            content = memoryview(array).cast("B") if array.size else b""
            entries[name.encode()] = entry(
                array.dtype.name,
                array.shape,
                offset=offset,
                size=array.nbytes,
                checksum=crc32c(content),
            )
            data.write(content)
            offset += array.nbytes
    prefix.with_name(f"{prefix.name}.index").write_bytes(index(entries))

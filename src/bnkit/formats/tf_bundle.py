"""TensorFlow's bundles: V2 checkpoints, TF2 object checkpoints, variables of a SavedModel.

`PREFIX.index` is a sorted table from names to entries (dtype, shape, shard, offset, size, CRC-32C);
`PREFIX.data-00000-of-00001` and so on hold the bytes. Strings and slices are described with
`_strings` and `bnkit.formats.tf_slices`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bnkit.formats.by_name import entries_by_name
from bnkit.formats.checkpoint import Checkpoint, StoredTensor
from bnkit.formats.crc32c import crc32c, unmasked
from bnkit.formats.dtypes import SIZES, byte_count, decode
from bnkit.formats.mapped import Mapped, beside, map_file
from bnkit.formats.sstable import table_entries
from bnkit.formats.tf_objects import OBJECT_GRAPH, object_paths
from bnkit.formats.tf_slices import assemble, check_cover
from bnkit.formats.tf_types import STRING, dtype_name, extents_of, shape_of, slice_key
from bnkit.formats.wire import Message, parse, varint

_MAX_SHARDS = 99_999  # five digits of their names


def read_bundle(source: Mapped) -> Checkpoint:
    """Read a checkpoint by its index.

    Args:
        source: The file `PREFIX.index`.

    Returns:
        The checkpoint; shards are opened when a tensor of them is asked for.

    Raises:
        CheckpointError: The index is damaged, or made on a big-endian machine.
    """
    entries = dict(table_entries(source))
    header = entries.pop(b"", None)
    if header is None:
        raise source.error("header", "the entry of a bundle with an empty name", "none")
    shards = _Shards(source, _shard_count(parse(header, "header")))
    parsed = {key: parse(value, "entry") for key, value in entries.items()}
    sliced = {
        key
        for name, entry in parsed.items()
        for key, _ in _slices(name, entry, shape_of(entry.message(2)))
    }
    tensors = {}
    for key, entry in parsed.items():
        if key not in sliced:
            name = source.text(key, "name of a tensor")
            tensors[name] = _tensor(shards, name, entry, parsed)
    metadata: dict[str, Any] = {"shards": shards.count}
    if OBJECT_GRAPH in tensors and tensors[OBJECT_GRAPH].dtype == STRING:
        metadata["objects"] = object_paths(source, tensors[OBJECT_GRAPH].load())
    prefix = source.path.with_name(source.path.name.removesuffix(".index"))
    return Checkpoint(prefix, "tf-bundle", tensors, metadata, entries_by_name(tensors))


@dataclass(frozen=True)
class _Shards:
    index: Mapped
    count: int
    opened: dict[int, Mapped] = field(default_factory=dict)

    def take(self, place: str, shard: int, offset: int, size: int) -> memoryview:
        if not 0 <= shard < self.count:
            raise self.index.error(place, f"one of {self.count} shards", f"shard {shard}")
        if shard not in self.opened:
            stem = self.index.path.name.removesuffix(".index")
            name = f"{stem}.data-{shard:05}-of-{self.count:05}"
            self.opened[shard] = map_file(beside(self.index.path, name))
        return self.opened[shard].take(offset, size, place)


def _shard_count(header: Message) -> int:
    if header.integer(2):
        raise header.source.error("header", "numbers in little-endian order", "big-endian")
    count = header.integer(1)
    if not 1 <= count <= _MAX_SHARDS:
        raise header.source.error("header", f"1 to {_MAX_SHARDS} shards", str(count))
    return count


def _slices(name: bytes, entry: Message, shape: tuple[int, ...]) -> list[tuple[bytes, Any]]:
    if 7 not in entry.fields:
        return []
    text = entry.source.text(name, "name of a tensor")
    found = [extents_of(one, shape) for one in entry.messages(7, "slice")]
    return [(slice_key(text, extents), extents) for extents in found]


def _tensor(
    shards: _Shards, name: str, entry: Message, entries: dict[bytes, Message]
) -> StoredTensor:
    dtype, shape, place = dtype_name(entry, 1), shape_of(entry.message(2)), f"tensor {name!r}"
    slices = _slices(name.encode(), entry, shape)
    if not slices:
        return StoredTensor(name, dtype, shape, _loader(shards, place, entry))
    check_cover(shards.index, place, shape, [extents for _, extents in slices])
    parts = []
    for key, extents in slices:
        if key not in entries or dtype_name(entries[key], 1) != dtype:
            raise shards.index.error(place, f"an entry of {dtype} for each slice", "another")
        parts.append((extents, _loader(shards, place, entries[key])))
    return StoredTensor(name, dtype, shape, partial(assemble, shards.index, place, shape, parts))


def _loader(shards: _Shards, place: str, entry: Message) -> Callable[[], np.ndarray]:
    dtype, shape = dtype_name(entry, 1), shape_of(entry.message(2))
    if dtype in SIZES:
        wanted = byte_count(shards.index, place, dtype, shape)
        if entry.integer(5) != wanted:
            got = f"{entry.integer(5)} bytes"
            raise shards.index.error(place, f"{wanted} bytes for {dtype} {shape}", got)
    return partial(_load, shards, place, entry)


def _load(shards: _Shards, place: str, entry: Message) -> np.ndarray:
    dtype, shape = dtype_name(entry, 1), shape_of(entry.message(2))
    data = shards.take(place, entry.integer(3), entry.integer(4), entry.integer(5))
    checksum = unmasked(entry.fixed32(6))
    source = shards.opened[entry.integer(3)]
    if dtype == STRING:
        return _strings(Mapped(source.path, data, source.part), place, shape, checksum)
    if dtype not in SIZES:
        raise source.error(place, "numbers or strings", f"a {dtype}, which only TensorFlow has")
    if crc32c(data) != checksum:
        raise source.error(place, "the CRC-32C that the index has", "other content")
    return decode(source, place, data, dtype, shape)


def _strings(source: Mapped, place: str, shape: tuple[int, ...], checksum: int) -> np.ndarray:
    """Lengths as varints, a checksum of them, then the bytes of all strings."""
    count = byte_count(source, place, "uint8", shape)
    if count > len(source):
        raise source.error(place, f"{count} strings", f"{len(source)} bytes")
    lengths, at, summed = [], 0, b""
    for _ in range(count):
        length, at = varint(source, at, place)
        lengths.append(length)
        summed += length.to_bytes(4 if length < 1 << 32 else 8, "little")
    stored = bytes(source.take(at, 4, place))
    content = source.take(at + 4, sum(lengths), place)
    if at + 4 + len(content) != len(source):
        raise source.error(place, f"{at + 4 + len(content)} bytes", f"{len(source)}")
    good = crc32c(summed) == unmasked(int.from_bytes(stored, "little"))
    if not good or crc32c(summed + stored + bytes(content)) != checksum:
        raise source.error(place, "the CRC-32C that the index has", "other content")
    array, at = np.empty(count, dtype=object), 0
    for number, length in enumerate(lengths):
        array[number] = bytes(content[at : at + length])
        at += length
    return array.reshape(shape)


def bundle_index(path: Path) -> Path | None:
    """Find the index of a bundle by what people name: a prefix, shard, folder or SavedModel.

    Args:
        path: What was named.

    Returns:
        The file `PREFIX.index`; None if nothing of the kind is there.
    """
    if path.is_dir():
        for inner in (path / "variables" / "variables.index", path / "variables.index"):
            if inner.is_file():
                return inner
        return _newest(path)
    stem = path.name.rpartition(".data-")[0]
    if stem and path.name[len(stem) + 6 :].replace("-of-", "").isdigit():
        return path.with_name(f"{stem}.index")
    index = path.with_name(f"{path.name}.index")
    return index if index.is_file() and not path.exists() else None


def _newest(folder: Path) -> Path | None:
    """The checkpoint that the text file `checkpoint` of a folder names, by its last part."""
    named = folder / "checkpoint"
    if not named.is_file():
        return None
    text = map_file(named)
    for line in text.text(text.data[: 1 << 20], "text").splitlines():
        key, _, value = line.partition(":")
        prefix = Path(value.strip().strip('"')).name
        if key.strip() == "model_checkpoint_path" and prefix:
            index = folder / f"{prefix}.index"
            return index if index.is_file() else folder / prefix
    return None

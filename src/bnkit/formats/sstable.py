"""LevelDB's sorted tables: the index of a TensorFlow bundle, and all of a V1 checkpoint.

Layout: blocks of entries, a block that lists them, and a footer of 48 bytes with its place. Every
block ends with its compression and the masked CRC-32C of both.
"""

from collections.abc import Iterator

from bnkit.formats.crc32c import crc32c, unmasked
from bnkit.formats.mapped import Mapped
from bnkit.formats.snappy import decompress
from bnkit.formats.wire import varint

MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER = 48
_TRAILER = 5  # compression and checksum behind each block
_NONE, _SNAPPY = 0, 1
_LONGEST_KEY = 1 << 14  # bytes; TensorFlow's names are far shorter
_MAX_ENTRIES = 1 << 20
_MAX_KEYS = 64  # bytes of all keys for a byte of the file: what two keys share is stored once


def table_entries(source: Mapped) -> Iterator[tuple[bytes, Mapped]]:
    """Go through a table in its order.

    Args:
        source: All of its file.

    Yields:
        Keys, in strictly ascending order, and values.

    Raises:
        CheckpointError: The table is damaged.
    """
    footer = len(source) - _FOOTER
    if footer < 0 or bytes(source.data[-len(MAGIC) :]) != MAGIC:
        raise source.error("footer", "a table of LevelDB", "another ending")
    _, _, at = _handle(source, footer)  # of a block of filters, which TensorFlow leaves empty
    start, size, _ = _handle(source, at)
    last, used, count, held = None, footer + 1, 0, 0
    for _, value in _block(source, start, size, "list of blocks"):
        start, size, _ = _handle(value, 0)
        used -= size + _TRAILER
        if used < 0:  # blocks that overlap: without this, a small file could stand for a large one
            raise source.error("list of blocks", "blocks that fit into the file", "more of them")
        for key, content in _block(source, start, size, f"block at byte {start}"):
            if last is not None and key <= last:
                raise source.error(f"block at byte {start}", "ascending keys", f"{key[:80]!r}")
            last, count, held = key, count + 1, held + len(key)
            if count > _MAX_ENTRIES or held > _MAX_KEYS * len(source):
                got = f"{count} of {held} bytes"
                raise source.error("keys", f"at most {_MAX_ENTRIES}, of ordinary length", got)
            yield key, content


def _handle(source: Mapped, at: int) -> tuple[int, int, int]:
    start, at = varint(source, at, "place of a block")
    size, at = varint(source, at, "place of a block")
    return start, size, at


def _block(source: Mapped, start: int, size: int, place: str) -> Iterator[tuple[bytes, Mapped]]:
    content = _content(source, start, size, place)
    restarts = content.number(len(content) - 4, 4, place)
    end = len(content) - 4 - 4 * restarts
    if end < 0:
        raise source.error(place, f"room for {restarts} restart points", f"{len(content)} bytes")
    at, key = 0, b""
    while at < end:
        shared, at = varint(content, at, place)
        own, at = varint(content, at, place)
        length, at = varint(content, at, place)
        if shared > len(key) or shared + own > _LONGEST_KEY or at + own + length > end:
            raise source.error(place, "an entry inside its block", "one that is longer")
        key = key[:shared] + bytes(content.data[at : at + own])
        at += own
        yield key, Mapped(source.path, content.data[at : at + length], f"entry {_shown(key)}")
        at += length


def _content(source: Mapped, start: int, size: int, place: str) -> Mapped:
    stored = source.take(start, size + _TRAILER, place)
    compression = stored[size]
    if crc32c(stored[: size + 1]) != unmasked(int.from_bytes(stored[size + 1 :], "little")):
        raise source.error(place, "the CRC-32C that is stored with it", "other content")
    if compression == _NONE:
        return Mapped(source.path, stored[:size], place)
    if compression == _SNAPPY:
        packed = Mapped(source.path, stored[:size], place)
        return Mapped(source.path, memoryview(decompress(packed, "snappy")), place)
    raise source.error(place, "no compression or snappy", f"compression {compression}")


def _shown(key: bytes) -> str:
    return repr(key.decode("utf-8", "replace"))[:120]

"""Snappy's block format, decompressed; blocks of LevelDB tables may be stored so."""

from bnkit.formats.mapped import Mapped
from bnkit.formats.wire import varint

_MOST = 64  # bytes that one byte of input can stand for, at the very most


def decompress(source: Mapped, place: str) -> bytes:
    """Decompress a block.

    Args:
        source: The compressed bytes.
        place: What they are, for messages of errors.

    Returns:
        The bytes, exactly as many as the block says.

    Raises:
        CheckpointError: The block is damaged; nothing larger than 64 times its size is made.
    """
    size, at = varint(source, 0, place)
    if size > _MOST * len(source):
        raise source.error(place, f"at most {_MOST} times {len(source)} bytes", f"{size} bytes")
    out = bytearray()
    while at < len(source):
        tag = source.data[at]
        if tag & 3 == 0:
            length, at = _literal_length(source, at, place)
            out += source.take(at, length, place)
            at += length
        else:
            length, distance, at = _copy(source, at, place)
            if not 0 < distance <= len(out):
                raise source.error(place, f"a copy from the {len(out)} bytes so far", "another")
            _repeat(out, length, distance)
        if len(out) > size:
            raise source.error(place, f"{size} bytes of content", "more")
    if len(out) != size:
        raise source.error(place, f"{size} bytes of content", f"{len(out)}")
    return bytes(out)


def _literal_length(source: Mapped, at: int, place: str) -> tuple[int, int]:
    short = source.data[at] >> 2
    if short < 60:
        return short + 1, at + 1
    extra = short - 59
    return source.number(at + 1, extra, place) + 1, at + 1 + extra


def _copy(source: Mapped, at: int, place: str) -> tuple[int, int, int]:
    """Length, distance, and where the next tag is."""
    tag = source.data[at]
    if tag & 3 == 1:
        low = source.number(at + 1, 1, place)
        return 4 + (tag >> 2 & 7), (tag >> 5) << 8 | low, at + 2
    extra = 2 if tag & 3 == 2 else 4
    return (tag >> 2) + 1, source.number(at + 1, extra, place), at + 1 + extra


def _repeat(out: bytearray, length: int, distance: int) -> None:
    piece = out[len(out) - distance :][:length]
    while len(piece) < length:  # the copy reads what it writes
        piece += piece[: length - len(piece)]
    out += piece

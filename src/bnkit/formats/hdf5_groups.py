"""Groups of an HDF5 file: what is in them, and under which names.

Links to other files and symbolic links are refused, because a file could read the disk with them.
"""

from collections.abc import Iterator

from bnkit.formats.hdf5_objects import UNDEFINED, Cursor, Header
from bnkit.formats.mapped import Mapped

_LINK_INFO, _LINK, SYMBOL_TABLE = 0x02, 0x06, 0x11
_SOFT = 2  # of a symbol table's entries
_MAX_NAME = 4096
_MAX_NODES = 1 << 20


def is_group(found: list[Header]) -> bool:
    """Tell groups from datasets.

    Args:
        found: Messages of the object.

    Returns:
        Whether it is a group.
    """
    return any(one.kind in (_LINK_INFO, _LINK, SYMBOL_TABLE) for one in found)


def children(source: Mapped, found: list[Header], place: str) -> Iterator[tuple[str, int]]:
    """List a group.

    Args:
        source: The file.
        found: Messages of the group.
        place: Which group, for messages of errors.

    Yields:
        Names and addresses of the objects in it.

    Raises:
        CheckpointError: A link leads elsewhere, or the group is damaged or of a newer layout.
    """
    for one in found:
        if one.kind == SYMBOL_TABLE:
            cursor = Cursor(one.data, 0, place)
            tree, heap = cursor.number(8), cursor.number(8)
            yield from _symbols(source, tree, _heap(source, heap, place), place)
        elif one.kind == _LINK:
            yield _link(one.data, place)
        elif one.kind == _LINK_INFO:
            cursor = Cursor(one.data, 1, place)
            flags = cursor.number(1)
            cursor.at += 8 if flags & 1 else 0
            if cursor.number(8) != UNDEFINED:
                raise source.error(
                    place,
                    "a group as h5py writes it by default",
                    "one in the newer layout of many links (open it with h5py and write it "
                    "again with libver='earliest')",
                )


def _heap(source: Mapped, address: int, place: str) -> Mapped:
    """Names of a group (section III.D)."""
    cursor = Cursor(source, address, f"{place}, names")
    cursor.signature(b"HEAP")
    cursor.at += 4
    size = cursor.number(8)
    cursor.at += 8
    return Mapped(source.path, source.take(cursor.number(8), size, cursor.place), source.part)


def _symbols(source: Mapped, tree: int, heap: Mapped, place: str) -> Iterator[tuple[str, int]]:
    """Entries in the leaves of a tree (sections III.A.1 and III.B)."""
    waiting, seen = [tree], set()
    while waiting:
        address = waiting.pop()
        if address in seen or len(seen) > _MAX_NODES:
            raise source.error(place, "a tree of nodes", f"byte {address} again")
        seen.add(address)
        if bytes(source.take(address, 4, place)) == b"SNOD":
            yield from _entries(source, address, heap, place)
            continue
        cursor = Cursor(source, address, f"{place}, tree")
        cursor.signature(b"TREE")
        if cursor.number(1):
            raise source.error(place, "a tree of a group", "another tree")
        cursor.at += 1
        count = cursor.number(2)
        cursor.at += 2 * 8
        nodes = []
        for _ in range(count):
            cursor.at += 8
            nodes.append(cursor.number(8))
        waiting += reversed(nodes)


def _entries(source: Mapped, address: int, heap: Mapped, place: str) -> Iterator[tuple[str, int]]:
    cursor = Cursor(source, address + 6, f"{place}, entries")
    for _ in range(cursor.number(2)):
        offset, header, kind = cursor.number(8), cursor.number(8), cursor.number(4)
        cursor.at += 20
        name = _name(heap, offset, place)
        if kind == _SOFT:
            raise _elsewhere(source, place, name)
        yield name, header


def _name(heap: Mapped, offset: int, place: str) -> str:
    start = bytes(heap.take(offset, min(_MAX_NAME, max(len(heap) - offset, 1)), place))
    end = start.find(b"\0")
    if end < 1:
        raise heap.error(place, "a name", f"{start[:20]!r}")
    return heap.text(start[:end], place)


def _link(data: Mapped, place: str) -> tuple[str, int]:
    """A link message (section IV.A.2.g)."""
    cursor = Cursor(data, 1, place)
    flags = cursor.number(1)
    kind = cursor.number(1) if flags & 8 else 0
    cursor.at += (8 if flags & 4 else 0) + (1 if flags & 0x10 else 0)
    name = data.text(cursor.take(cursor.number(1 << (flags & 3))), place)
    if kind:
        raise _elsewhere(data, place, name)
    return name, cursor.number(8)


def _elsewhere(source: Mapped, place: str, name: str) -> Exception:
    where = f"{place}, link {name!r:.80}"
    return source.error(where, "an object of this file", "a link to elsewhere; it was not opened")

"""Datatypes, dataspaces and attributes of an HDF5 file."""

from dataclasses import dataclass, field
from math import prod

from bnkit.formats.dtypes import MAX_RANK
from bnkit.formats.hdf5_objects import UNDEFINED, Cursor, Header
from bnkit.formats.mapped import Mapped

_ATTRIBUTE = 0x0C
_FIXED, _FLOAT, _STRING, _OPAQUE, _ENUM, _VARIABLE = 0, 1, 3, 5, 8, 9
_NULL_SPACE = 2
_MAX_TEXTS = 1 << 20  # looked at in one file


@dataclass(frozen=True)
class Stored:
    """A datatype.

    Attributes:
        name: A name of `StoredTensor.dtype`, `opaque`, or what else it is.
        size: Bytes of one value.
        variable: Whether a value is a reference to text elsewhere in the file.
    """

    name: str
    size: int
    variable: bool = False


def datatype(data: Mapped, place: str) -> Stored:
    """Read a datatype message (section IV.A.2.d).

    Args:
        data: The message.
        place: Which object, for messages of errors.

    Returns:
        The datatype; those that no tensor of Keras has are named, and refused by their users.
    """
    cursor = Cursor(data, 0, place)
    kind, bits, size = cursor.number(1) & 0x0F, cursor.number(3), cursor.number(4)
    if kind == _VARIABLE:
        return Stored("string" if bits & 0x0F == 1 else "sequence", size, variable=True)
    if kind == _ENUM:  # h5py's bool is an enumeration of int8
        base = datatype(Mapped(data.path, data.data[8:], data.part), place)
        return Stored("bool" if size == base.size == 1 else "enumeration", size)
    if kind in (_STRING, _OPAQUE):
        return Stored("string" if kind == _STRING else "opaque", size)
    if kind not in (_FIXED, _FLOAT) or (bits & 1 and size > 1):
        return Stored("big-endian or compound", size)
    offset, precision = cursor.number(2), cursor.number(2)
    if offset or precision != 8 * size:
        return Stored("packed number", size)
    if kind == _FIXED:
        return Stored(f"{'int' if bits & 8 else 'uint'}{8 * size}", size)
    exponent = cursor.at + 1
    standard = {2: 5, 4: 8, 8: 11}.get(size) == data.number(exponent, 1, place)
    return Stored(f"float{8 * size}" if standard else "other float", size)


def dataspace(data: Mapped, place: str) -> tuple[int, ...] | None:
    """Read a dataspace message (section IV.A.2.b).

    Args:
        data: The message.
        place: Which object, for messages of errors.

    Returns:
        The shape; None where there is no value at all.

    Raises:
        CheckpointError: It has too many dimensions or an unknown version.
    """
    cursor = Cursor(data, 0, place)
    version, rank, _, kind = (cursor.number(1) for _ in range(4))
    if version not in (1, 2) or rank > MAX_RANK:
        raise data.error(place, f"up to {MAX_RANK} dimensions", f"{rank}, version {version}")
    if version == 2 and kind == _NULL_SPACE:
        return None
    cursor.at = 8 if version == 1 else 4
    return tuple(cursor.number(8) for _ in range(rank))


@dataclass
class TextHeaps:
    """Text of any length, in the global heaps of a file (section III.E).

    Attributes:
        source: The file.
        known: Place and size of the texts of each heap, by its address and their numbers.
        objects: How many have been looked at.
    """

    source: Mapped
    known: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    objects: int = 0

    def text(self, reference: memoryview, place: str) -> memoryview:
        """Follow a reference.

        Args:
            reference: As it is stored in an attribute.
            place: Which attribute, for messages of errors.

        Returns:
            The bytes of the text.

        Raises:
            CheckpointError: There is no such text, or far too many.
        """
        cursor = Cursor(Mapped(self.source.path, reference, self.source.part), 0, place)
        length, address, index = cursor.number(4), cursor.number(8), cursor.number(4)
        if address in (0, UNDEFINED):
            return memoryview(b"")
        if address not in self.known:
            self.known[address] = self._objects(address, place)
        if index not in self.known[address]:
            raise self.source.error(place, f"text number {index} in its heap", "none")
        start, size = self.known[address][index]
        return self.source.take(start, min(length, size), place)

    def _objects(self, address: int, place: str) -> dict[int, tuple[int, int]]:
        heap = Cursor(self.source, address, f"{place}, heap")
        heap.signature(b"GCOL")
        heap.at += 4
        end = address + heap.number(8)
        found: dict[int, tuple[int, int]] = {}
        while heap.at + 16 <= end:
            index = heap.number(2)
            heap.at += 6
            size = heap.number(8)
            self.objects += 1
            if not index or self.objects > _MAX_TEXTS:
                break
            found[index] = heap.at, size
            heap.at += size + -size % 8
        return found


def attributes(heaps: TextHeaps, found: list[Header], place: str) -> dict[str, str | list[str]]:
    """Read the attributes of an object that are text or lists of text.

    Args:
        heaps: Of the file.
        found: Messages of the object.
        place: Which object, for messages of errors.

    Returns:
        The texts by name; attributes of numbers are left out.
    """
    texts = {}
    for one in found:
        if one.kind == _ATTRIBUTE:
            name, value = _attribute(heaps, one.data, place)
            if value is not None:
                texts[name] = value
    return texts


def _attribute(heaps: TextHeaps, data: Mapped, place: str) -> tuple[str, str | list[str] | None]:
    """An attribute message (section IV.A.2.m)."""
    cursor = Cursor(data, 0, place)
    version, flags = cursor.number(1), cursor.number(1)
    sizes = [cursor.number(2) for _ in range(3)]
    if version not in (1, 2, 3) or (version > 1 and flags & 3):
        raise data.error(place, "an attribute with types of its own", f"version {version}")
    cursor.at += version == 3
    parts = []
    for size in sizes:
        parts.append(Mapped(data.path, cursor.take(size), data.part))
        cursor.at += -size % 8 if version == 1 else 0
    name = data.text(bytes(parts[0].data).partition(b"\0")[0], place)
    place = f"{place}, attribute {name!r:.80}"
    stored, shape = datatype(parts[1], place), dataspace(parts[2], place)
    if stored.name != "string" or shape is None:
        return name, None
    count = prod(shape)
    if count > len(data):
        raise data.error(place, f"at most {len(data)} texts", f"{count}")
    values = cursor.take(count * stored.size) if count else memoryview(b"")
    texts = []
    for number in range(count):
        value = values[number * stored.size : (number + 1) * stored.size]
        if stored.variable:
            value = heaps.text(value, place)
        texts.append(data.text(bytes(value).partition(b"\0")[0], place))
    return name, texts if shape else texts[0]

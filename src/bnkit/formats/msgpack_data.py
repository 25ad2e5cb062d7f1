"""MessagePack, read as data: the subset and the extensions that Flax writes."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bnkit.formats.mapped import Mapped

_MAX_DEPTH = 64
_MAX_VALUES = 1 << 22


@dataclass(frozen=True)
class Extension:
    """A value of an application's own type.

    Attributes:
        code: The type.
        data: Its bytes.
    """

    code: int
    data: memoryview


def unpack(source: Mapped, place: str = "document") -> Any:
    """Read one value that fills its file.

    Args:
        source: The bytes.
        place: What they are, for messages.

    Returns:
        Dictionaries, lists, numbers, text, None, `memoryview` for bytes, and `Extension`.

    Raises:
        CheckpointError: The data is damaged, too deep, names something twice, or goes on.
    """
    value, at = _Reader(source, place).value(0, 0)
    if at != len(source):
        raise source.error(place, f"the end at byte {at}", f"{len(source) - at} bytes more")
    return value


_FLOATS = {0xCA: (">f", 4), 0xCB: (">d", 8)}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_SIZED = {  # first byte -> bytes of the length, what follows
    0xC4: (1, "bin"),
    0xC5: (2, "bin"),
    0xC6: (4, "bin"),
    0xD9: (1, "str"),
    0xDA: (2, "str"),
    0xDB: (4, "str"),
    0xC7: (1, "ext"),
    0xC8: (2, "ext"),
    0xC9: (4, "ext"),
    0xDC: (2, "array"),
    0xDD: (4, "array"),
    0xDE: (2, "map"),
    0xDF: (4, "map"),
}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


class _Reader:
    def __init__(self, source: Mapped, place: str) -> None:
        self._source, self._place, self._count = source, place, 0

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        if depth > _MAX_DEPTH:
            raise self._source.error(self._place, f"at most {_MAX_DEPTH} levels", "more")
        self._count += 1
        if self._count > _MAX_VALUES:
            raise self._source.error(self._place, f"at most {_MAX_VALUES} values", "more")
        first = self._source.number(at, 1, self._place)
        if first <= 0x7F or first >= 0xE0:
            return first - 256 * (first >= 0xE0), at + 1
        if first in _CONSTANTS:
            return _CONSTANTS[first], at + 1
        if 0xCA <= first <= 0xD3:
            return self._number(first, at + 1)
        if first in _FIXED_EXTENSIONS:
            return self._ext(at + 1, _FIXED_EXTENSIONS[first], depth)
        if first in _SIZED:
            width, kind = _SIZED[first]
            size = self._big_endian(at + 1, width)
            return self._kinds()[kind](at + 1 + width, size, depth)
        if first == 0xC1:
            raise self._source.error(f"{self._place}, byte {at}", "a type of MessagePack", "0xc1")
        kind = "map" if first < 0x90 else "array" if first < 0xA0 else "str"
        return self._kinds()[kind](at + 1, first & (0x1F if kind == "str" else 0x0F), depth)

    def _kinds(self) -> dict[str, Callable[[int, int, int], tuple[Any, int]]]:
        return {
            "bin": self._bin,
            "str": self._str,
            "ext": self._ext,
            "array": self._array,
            "map": self._map,
        }

    def _number(self, first: int, at: int) -> tuple[float | int, int]:
        if first in _FLOATS:
            layout, size = _FLOATS[first]
            return struct.unpack(layout, self._source.take(at, size, self._place))[0], at + size
        size = 1 << (first & 3)
        data = self._source.take(at, size, self._place)
        return int.from_bytes(data, "big", signed=first >= 0xD0), at + size

    def _big_endian(self, at: int, size: int) -> int:
        return int.from_bytes(self._source.take(at, size, self._place), "big")

    def _bin(self, at: int, size: int, _depth: int) -> tuple[memoryview, int]:
        return self._source.take(at, size, self._place), at + size

    def _str(self, at: int, size: int, _depth: int) -> tuple[str, int]:
        return self._source.text(self._source.take(at, size, self._place), self._place), at + size

    def _ext(self, at: int, size: int, _depth: int) -> tuple[Extension, int]:
        code = self._source.number(at, 1, self._place)
        return Extension(code, self._source.take(at + 1, size, self._place)), at + 1 + size

    def _array(self, at: int, size: int, depth: int) -> tuple[list[Any], int]:
        found = []
        for _ in range(size):
            one, at = self.value(at, depth + 1)
            found.append(one)
        return found, at

    def _map(self, at: int, size: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        for _ in range(size):
            key, at = self.value(at, depth + 1)
            if not isinstance(key, str | int) or str(key) in found:
                raise self._source.error(self._place, "keys that differ", f"{key!r:.80}")
            found[str(key)], at = self.value(at, depth + 1)
        return found, at

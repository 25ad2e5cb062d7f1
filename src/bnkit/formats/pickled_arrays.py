"""Pickles of arrays, read as data: no class is imported, no function called.

Paddle's `.pdparams` are pickles of dictionaries of NumPy arrays. The few instructions that such a
file needs are interpreted here on plain values; the four names that it may mention stand for
themselves, and everything else is refused.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

from bnkit.formats.mapped import Mapped

_MAX_STACK = 1 << 20
_MAX_INSTRUCTIONS = 1 << 22


@dataclass
class Dtype:
    """NumPy's description of a dtype.

    Attributes:
        text: Such as `f4`.
        order: `<`, `>`, `|` or `=`.
    """

    text: str
    order: str = "="


@dataclass
class PickledArray:
    """An array before its bytes are looked at.

    Attributes:
        shape: Its dimensions.
        dtype: Of the values.
        fortran: Whether columns come first.
        data: The bytes.
    """

    shape: tuple[int, ...] = ()
    dtype: Dtype | None = None
    fortran: bool = False
    data: memoryview | bytes = b""


@dataclass(frozen=True)
class _Name:
    module: str
    name: str


class _Mark:
    pass


_RECONSTRUCT = {
    _Name("numpy.core.multiarray", "_reconstruct"),
    _Name("numpy._core.multiarray", "_reconstruct"),
}
_NDARRAY, _DTYPE = _Name("numpy", "ndarray"), _Name("numpy", "dtype")
_TUPLE = {_Name("builtins", "tuple"), _Name("__builtin__", "tuple")}
_ENCODE = _Name("_codecs", "encode")
_KNOWN = {*_RECONSTRUCT, _NDARRAY, _DTYPE, *_TUPLE, _ENCODE}
_MARK = _Mark()

_SIZED_BYTES = {0x43: 1, 0x42: 4, 0x8E: 8, 0x8C: -1, 0x58: -4, 0x8D: -8}  # negative: text
_INTEGERS = {0x4B: (1, False), 0x4D: (2, False), 0x4A: (4, True)}
_CONSTANTS = {0x4E: None, 0x88: True, 0x89: False, 0x29: ()}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}


def read_pickled_arrays(source: Mapped) -> dict[str, Any]:
    """Read a pickle of a dictionary of arrays.

    Args:
        source: The file.

    Returns:
        The dictionary, arrays as `PickledArray`.

    Raises:
        CheckpointError: It needs anything but arrays, or is damaged.
    """
    document = _Machine(source).run()
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise source.error("pickle", "a dictionary of arrays", f"a {type(document).__name__}")
    return document


@dataclass
class _Machine:
    source: Mapped
    at: int = 0
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        for _ in range(_MAX_INSTRUCTIONS):
            code = self._number(1)
            if code == 0x2E:  # STOP
                return self._pop()
            if len(self.stack) > _MAX_STACK:
                raise self._error(f"at most {_MAX_STACK} values at a time", "more")
            if not (self._push_constant(code) or self._remember(code) or self._build(code)):
                raise self._error(
                    "a pickle of arrays alone", f"the instruction {code:#04x}; it was not run"
                )
        raise self._error(f"at most {_MAX_INSTRUCTIONS} instructions", "more")

    def _push_constant(self, code: int) -> bool:
        if code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code])
        elif code in _INTEGERS:
            size, signed = _INTEGERS[code]
            self.stack.append(int.from_bytes(self._take(size), "little", signed=signed))
        elif code == 0x8A:  # LONG1
            self.stack.append(int.from_bytes(self._take(self._number(1)), "little", signed=True))
        elif code == 0x47:  # BINFLOAT
            self.stack.append(struct.unpack(">d", self._take(8))[0])
        elif code in _SIZED_BYTES:
            width = _SIZED_BYTES[code]
            data = self._take(self._number(abs(width)))
            self.stack.append(self.source.text(data, "pickle") if width < 0 else data)
        elif code in (0x7D, 0x5D):  # EMPTY_DICT, EMPTY_LIST
            self.stack.append({} if code == 0x7D else [])
        elif code == 0x28:
            self.stack.append(_MARK)
        else:
            return False
        return True

    def _remember(self, code: int) -> bool:
        if code == 0x94:  # MEMOIZE
            self.memo[len(self.memo)] = self._top()
        elif code in (0x71, 0x72):  # BINPUT, LONG_BINPUT
            self.memo[self._number(1 if code == 0x71 else 4)] = self._top()
        elif code in (0x68, 0x6A):  # BINGET, LONG_BINGET
            number = self._number(1 if code == 0x68 else 4)
            if number not in self.memo:
                raise self._error("a value that was kept", f"number {number}")
            self.stack.append(self.memo[number])
        elif code in (0x80, 0x95):  # PROTO, FRAME
            self._take(1 if code == 0x80 else 8)
        else:
            return False
        return True

    def _build(self, code: int) -> bool:
        if code in _TUPLES:
            items = [self._pop() for _ in range(_TUPLES[code])]
            self.stack.append(tuple(reversed(items)))
        elif code == 0x74:  # TUPLE
            self.stack.append(tuple(self._to_mark()))
        elif code in (0x73, 0x75):  # SETITEM, SETITEMS
            items = self._to_mark() if code == 0x75 else [*reversed([self._pop(), self._pop()])]
            self._set_items(items)
        elif code in (0x61, 0x65):  # APPEND, APPENDS
            items = self._to_mark() if code == 0x65 else [self._pop()]
            self._expect(self._top(), list, "a list").extend(items)
        elif code in (0x63, 0x93):  # GLOBAL, STACK_GLOBAL
            self._name(code)
        elif code == 0x52:  # REDUCE
            arguments, called = self._pop(), self._pop()
            self.stack.append(self._reduced(called, arguments))
        elif code == 0x62:  # BUILD
            state = self._pop()
            self._set_state(self._top(), state)
        else:
            return False
        return True

    def _set_items(self, items: list[Any]) -> None:
        target = self._expect(self._top(), dict, "a dictionary")
        if len(items) % 2:
            raise self._error("pairs of keys and values", f"{len(items)} values")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int) or key in target:
                raise self._error("keys that differ, of text", f"{key!r:.80}")
            target[key] = value

    def _name(self, code: int) -> None:
        if code == 0x93:
            name, module = self._pop(), self._pop()
        else:
            module, name = self._line(), self._line()
        found = _Name(str(module), str(name))
        if found not in _KNOWN:
            got = f"{found.module}.{found.name}"
            raise self._error("a pickle of arrays alone", f"the name {got!r:.120}; it was not run")
        self.stack.append(found)

    def _reduced(self, called: Any, arguments: Any) -> Any:
        known = called if isinstance(called, _Name) else None
        match arguments:
            case (first, *_) if known in _RECONSTRUCT and first == _NDARRAY:
                return PickledArray()
            case (str(text), *_) if known == _DTYPE:
                return Dtype(text)
            case (tuple(items),) if known in _TUPLE:
                return items
            case (str(text), "latin1") if known == _ENCODE and max(text, default="") < "\u0100":
                return text.encode("latin1")
        raise self._error("a pickle of arrays alone", "another call; it was not run")

    def _set_state(self, target: Any, state: Any) -> None:
        match target, state:
            case Dtype(), (int(), str(order), None, None, None, *_):
                target.order = order
            case PickledArray(), (int(), tuple(shape), Dtype() as dtype, bool(fortran), data) if (
                isinstance(data, memoryview | bytes) and all(type(n) is int for n in shape)
            ):
                target.shape, target.dtype = shape, dtype
                target.fortran, target.data = fortran, data
            case _:
                raise self._error("the state of an array of numbers", "another")

    def _to_mark(self) -> list[Any]:
        items = []
        while (one := self._pop()) is not _MARK:
            items.append(one)
        return items[::-1]

    def _expect(self, value: Any, kind: type, text: str) -> Any:
        if not isinstance(value, kind):
            raise self._error(text, f"a {type(value).__name__}")
        return value

    def _top(self) -> Any:
        if not self.stack:
            raise self._error("a value", "none")
        return self.stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self.stack.pop()

    def _take(self, size: int) -> memoryview:
        data = self.source.take(self.at, size, "pickle")
        self.at += size
        return data

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        end = bytes(self.source.data[self.at : self.at + 200]).find(b"\n")
        line = self._take(end + 1 if end >= 0 else 1 << 62)
        return self.source.text(line, "pickle").strip()

    def _error(self, expected: str, got: str) -> Exception:
        return self.source.error(f"pickle, byte {self.at}", expected, got)

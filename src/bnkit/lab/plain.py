"""Frozen results to plain JSON values and back."""

from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class Record:
    """Base of every frozen result: it can be turned into JSON values."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields as dicts, lists, strings, numbers, booleans and None."""
        return to_plain(self)


def to_plain(value: Any) -> Any:
    """Turn dataclasses into dicts and tuples into lists, at every depth.

    Args:
        value: A dataclass, or anything made of dataclasses, dicts, sequences and plain values.

    Returns:
        Dicts, lists and plain values.

    Example:
        >>> from bnkit.lab.record import Text
        >>> to_plain((Text("yes", "是"), 1.5))
        [{'en': 'yes', 'zh': '是'}, 1.5]
    """
    if is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    return value


def rebuild(kind: type[T], value: Any) -> T:
    """Invert `to_plain` for a dataclass whose fields are annotated.

    Args:
        kind: The dataclass to build.
        value: What `to_plain` made of one of its instances.

    Returns:
        The instance; equal to the one `to_plain` was given.

    Raises:
        KeyError: A field is missing.

    Example:
        >>> from bnkit.lab.record import Text
        >>> rebuild(Text, {"en": "yes", "zh": "是"})
        Text(en='yes', zh='是')
    """
    return _build(kind, value)


def _build(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if origin is UnionType:
        rest = [a for a in get_args(hint) if a is not NoneType]
        return None if value is None else _build(rest[0], value)
    if origin is tuple:
        return tuple(_build(get_args(hint)[0], v) for v in value)
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return hint(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(hint)})
    return value

"""Partitioned variables of TensorFlow: one tensor from its slices."""

from collections.abc import Callable

import numpy as np

from bnkit.formats.mapped import Mapped
from bnkit.formats.tf_types import Extent

Part = tuple[tuple[Extent, ...], Callable[[], np.ndarray]]


def check_cover(
    source: Mapped, place: str, shape: tuple[int, ...], slices: list[tuple[Extent, ...]]
) -> None:
    """Prove that slices make up a tensor: none overlaps another, and none is missing.

    Args:
        source: The file, for messages.
        place: Which tensor, for messages.
        shape: Of the tensor.
        slices: Extents of every slice.

    Raises:
        CheckpointError: They do not.
    """
    boxes = [_box(extents, shape) for extents in slices]
    total = sum(_volume([(b.start, b.stop) for b in box]) for box in boxes)
    wanted = _volume([(0, size) for size in shape])
    if total != wanted or len(boxes) > max(wanted, 1):
        raise source.error(place, f"slices of {wanted} values in all", f"{total} values")
    order = sorted(boxes, key=lambda box: [b.start for b in box])
    for number, box in enumerate(order):
        for other in order[number + 1 :]:
            if box and other[0].start >= box[0].stop:
                break  # they are sorted by their first index
            if all(a.start < b.stop and b.start < a.stop for a, b in zip(box, other, strict=True)):
                raise source.error(place, "slices that do not overlap", f"{box} and {other}")


def assemble(source: Mapped, place: str, shape: tuple[int, ...], parts: list[Part]) -> np.ndarray:
    """Put the slices of a tensor together.

    Args:
        source: The file, for messages.
        place: Which tensor, for messages.
        shape: Of the tensor.
        parts: Its slices, which `check_cover` has accepted.

    Returns:
        A read-only array.

    Raises:
        CheckpointError: A slice has another shape than its extents.
    """
    whole: np.ndarray | None = None
    for extents, load in parts:
        array, box = load(), _box(extents, shape)
        if array.shape != tuple(b.stop - b.start for b in box):
            raise source.error(place, f"a slice of {box}", f"one of shape {array.shape}")
        if whole is None:
            whole = np.empty(shape, dtype=array.dtype)
        if array.dtype != whole.dtype:
            raise source.error(place, f"slices of {whole.dtype}", f"one of {array.dtype}")
        whole[box] = array
    if whole is None:
        raise source.error(place, "at least one slice", "none")
    whole.flags.writeable = False
    return whole


def _box(extents: tuple[Extent, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(extent.bounds(size) for extent, size in zip(extents, shape, strict=True))


def _volume(box: list[tuple[int, int]]) -> int:
    total = 1
    for start, stop in box:
        total *= stop - start
    return total

"""The bytes that a batch norm must move: the floor that its speed is measured against.

The floor counts every large array once in each direction that it crosses the border between the
processor and memory. A second reading is not counted, because a kernel that works channel by
channel finds it in the cache; vectors of c values are not counted either.

    direction   operator       read                      write                     arrays
    copy        -              x                         y                         2
    forward     bn, bn_relu    x                         y                         2
    forward     bn_add_relu    x, residual               y                         3
    eval        as forward
    backward    bn, bn_relu    grad_y, x                 grad_x                    3
    backward    bn_add_relu    grad_y, x, residual       grad_x, grad_residual     5

The training forward that reads x twice from memory moves 3 arrays instead of 2, the backward that
does so 5 instead of 3: such a kernel cannot pass 67 % or 60 % of the copy bandwidth.
"""

import math
from typing import Literal

Operator = Literal["bn", "bn_relu", "bn_add_relu"]
Direction = Literal["forward", "backward", "forward_backward", "eval"]

_ARRAYS: dict[tuple[str, str], int] = {
    ("bn", "forward"): 2,
    ("bn_relu", "forward"): 2,
    ("bn_add_relu", "forward"): 3,
    ("bn", "backward"): 3,
    ("bn_relu", "backward"): 3,
    ("bn_add_relu", "backward"): 5,
}


def array_bytes(sizes: tuple[int, ...], itemsize: int = 4) -> int:
    """Bytes of one array.

    Args:
        sizes: Its shape.
        itemsize: Bytes of a value.

    Returns:
        The number of bytes.
    """
    return math.prod(sizes) * itemsize


def floor_bytes(
    operator: Operator, direction: Direction, sizes: tuple[int, ...], itemsize: int = 4
) -> int:
    """Bytes that must cross the border to memory, by the table above.

    Args:
        operator: What is computed.
        direction: Which pass.
        sizes: Shape of the input.
        itemsize: Bytes of a value.

    Returns:
        The number of bytes.

    Example:
        >>> floor_bytes("bn", "forward", (8, 16), 4) == 2 * 8 * 16 * 4
        True
    """
    passes = {"eval": ("forward",), "forward_backward": ("forward", "backward")}
    arrays = sum(_ARRAYS[operator, part] for part in passes.get(direction, (direction,)))
    return arrays * array_bytes(sizes, itemsize)


def copy_bytes(sizes: tuple[int, ...], itemsize: int = 4) -> int:
    """Bytes of a plain copy: one reading, one writing.

    Args:
        sizes: Shape of the array.
        itemsize: Bytes of a value.

    Returns:
        The number of bytes.
    """
    return 2 * array_bytes(sizes, itemsize)

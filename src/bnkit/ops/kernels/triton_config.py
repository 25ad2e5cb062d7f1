"""How the Triton kernels are launched: tiles, programs and warps, from the shape alone.

Memory is seen as `(n, c, s)` with contiguous planes of s values. Channels-last is the same with
`(n * s, c, 1)`, so that one set of kernels serves both. A program owns a block of channels and a
run of tiles; a tile is `planes x span` positions of every channel of the block.

The numbers are derived, not tuned: no GPU was at hand, and their speed is unmeasured.
"""

from dataclasses import dataclass
from typing import NamedTuple

from bnkit.ops.registry import Affine

Shape = tuple[int, int, int]

# Values a thread holds in registers, and of a tile: 4096 float32 values are 8 warps of those.
_PER_THREAD = 16
_LARGE, _SMALL = 4096, 2048
_WARPS = 8
# Channels side by side in a row: 256 bytes of float32, whole cache lines of 16-bit values.
_ROW = 64
# Short planes are joined over channels, so that a program has work for its threads.
_JOINED = 16
# Programs per multiprocessor: enough that one loads while another reduces.
_OCCUPANCY = 8
# The second axis of a CUDA grid ends here.
_GRID = 65535


class Tile(NamedTuple):
    """Extent of a tile; powers of two.

    Attributes:
        planes: Planes (or rows, in channels-last).
        span: Values of a plane.
        channels: Channels.
    """

    planes: int
    span: int
    channels: int


class Constants(NamedTuple):
    """What is compiled into a kernel: a tile, and the formula. One level deep, as Triton asks.

    Attributes:
        planes: As in `Tile`.
        span: As in `Tile`.
        channels: As in `Tile`.
        act: Name of the activation.
        slope: Of the leaky ReLU.
        eps: Added to the variance.
    """

    planes: int
    span: int
    channels: int
    act: str = "none"
    slope: float = 0.0
    eps: float = 0.0


@dataclass(frozen=True, slots=True)
class Launch:
    """The knobs of one launch.

    Attributes:
        tile: What a program works on at a time.
        grid: Blocks of channels, and parts that the tiles of a block are split into.
        tiles: Tiles of a block of channels.
        each: Tiles of a part; the last part may have fewer.
        num_warps: Warps of a program.
    """

    tile: Tile
    grid: tuple[int, int]
    tiles: int
    each: int
    num_warps: int


MERGE = Tile(planes=64, span=1, channels=32)
"""The tile of the kernels that merge parts: `planes` parts at a time."""


def fixed_by(tile: Tile, given: Affine) -> Constants:
    """What is compiled into a kernel.

    Args:
        tile: What a program works on at a time.
        given: The formula.

    Returns:
        The constants; another eps or slope compiles another kernel.
    """
    return Constants(*tile, given.act.name, given.act.slope, given.eps)


def streaming(shape: Shape, itemsize: int, processors: int) -> Launch:
    """Launch of a kernel that keeps one tile in registers.

    Args:
        shape: `(n, c, s)`.
        itemsize: Bytes of a value as it is computed with, 4 or 8.
        processors: Multiprocessors of the GPU.

    Returns:
        The launch.

    Example:
        >>> from bnkit.ops.kernels.triton_config import streaming
        >>> streaming((32, 256, 56 * 56), 4, 132)
        Launch(tile=Tile(planes=1, span=4096, channels=1), grid=(256, 5), tiles=32, each=7, \
num_warps=8)
    """
    return _launch(shape, _LARGE * 4 // itemsize, processors)


def accumulating(shape: Shape, itemsize: int, processors: int) -> Launch:
    """Launch of a kernel that also keeps sums as large as its tile.

    Args:
        shape: `(n, c, s)`.
        itemsize: Bytes of a value as it is computed with, 4 or 8.
        processors: Multiprocessors of the GPU.

    Returns:
        The launch.
    """
    return _launch(shape, _SMALL * 4 // itemsize, processors)


def _launch(shape: Shape, size: int, processors: int) -> Launch:
    n, c, s = shape
    programs = _OCCUPANCY * processors
    tile = _rows(n, c, size) if s == 1 else _planes(shape, size, programs)
    blocks = _cdiv(c, tile.channels)
    tiles = _cdiv(n, tile.planes) * _cdiv(s, tile.span)
    parts = min(_cdiv(programs, blocks), tiles, _GRID)
    each = _cdiv(tiles, parts)
    warps = tile.planes * tile.span * tile.channels // (32 * _PER_THREAD)
    return Launch(tile, (blocks, _cdiv(tiles, each)), tiles, each, max(1, min(warps, _WARPS)))


def _rows(n: int, c: int, size: int) -> Tile:
    channels = min(_power(c), _ROW)
    return Tile(min(_power(n), size // channels), 1, channels)


def _planes(shape: Shape, size: int, programs: int) -> Tile:
    n, c, s = shape
    values = min(_power(s), size)
    planes = min(_power(n), size // values)
    joined = min(_JOINED, size // (values * planes), _power(c))
    while joined > 1 and _cdiv(c, joined) < programs:
        joined //= 2
    return Tile(planes, values, joined)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _power(a: int) -> int:
    """The least power of two that is not less."""
    return 1 << (a - 1).bit_length()

"""How frameworks lay out the kernels of their layers: each to PyTorch's layout and back.

`s` are the spatial dimensions, `i` and `o` input and output channels, `g` groups, `m` the channel
multiplier of a depthwise convolution. PyTorch has `(o, i/g, s)`, transposed `(i, o/g, s)`, and
`(o, i)` for a dense layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to store a kernel.

    Attributes:
        name: In the letters of the module's docstring.
        to_torch: The array in PyTorch's layout.
        from_torch: The inverse; also takes the stored shape.
        ranks: Numbers of dimensions that it can have.
    """

    name: str
    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray, Shape], np.ndarray]
    ranks: tuple[int, ...] = (3, 4, 5)

    def shape(self, stored: Shape) -> Shape | None:
        """The shape in PyTorch's layout; None if a kernel of that rank is not stored so."""
        return _shape(self, tuple(stored)) if len(stored) in self.ranks else None


@lru_cache(4096)
def _shape(layout: Layout, stored: Shape) -> Shape:
    return layout.to_torch(np.broadcast_to(np.float32(0), stored)).shape


def _last_first(array: np.ndarray) -> np.ndarray:
    """`(s, a, b)` to `(b, a, s)`."""
    n = array.ndim
    return array.transpose(n - 1, n - 2, *range(n - 2))


def _first_last(array: np.ndarray, _: Shape) -> np.ndarray:
    return array.transpose(*range(2, array.ndim), 1, 0)


def _flip(array: np.ndarray) -> np.ndarray:
    return np.flip(array, tuple(range(2, array.ndim)))


def _flipped_first(array: np.ndarray) -> np.ndarray:
    """`(s, i, o)` to `(i, o, s)`, turned around: the kernel is correlated, not convolved."""
    n = array.ndim
    return _flip(array.transpose(n - 2, n - 1, *range(n - 2)))


def _flipped_last(array: np.ndarray, _: Shape) -> np.ndarray:
    return _flip(array).transpose(*range(2, array.ndim), 0, 1)


def _flipped_swapped(array: np.ndarray) -> np.ndarray:
    return _flip(_last_first(array))


def _flipped_swapped_back(array: np.ndarray, shape: Shape) -> np.ndarray:
    return _first_last(_flip(array), shape)


def _flipped_pair(array: np.ndarray) -> np.ndarray:
    """`(o, i, s)` to `(i, o, s)` and back, turned around."""
    return _flip(array.swapaxes(0, 1))


def _flipped_pair_back(array: np.ndarray, _: Shape) -> np.ndarray:
    return _flipped_pair(array)


def _depthwise(array: np.ndarray) -> np.ndarray:
    """`(s, i, m)` to `(i m, 1, s)`: output channel `i m_count + m`."""
    n = array.ndim
    moved = array.transpose(n - 2, n - 1, *range(n - 2))
    return moved.reshape(moved.shape[0] * moved.shape[1], 1, *moved.shape[2:])


def _depthwise_back(array: np.ndarray, shape: Shape) -> np.ndarray:
    spread = array.reshape(shape[-2], shape[-1], *array.shape[2:])
    return spread.transpose(*range(2, spread.ndim), 0, 1)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _as_is(array: np.ndarray, _: Shape) -> np.ndarray:
    return array


def _turned(array: np.ndarray) -> np.ndarray:
    return array.T


def _turned_back(array: np.ndarray, _: Shape) -> np.ndarray:
    return array.T


CHANNELS_FIRST = Layout(name="o i s", to_torch=_same, from_torch=_as_is)
TRANSPOSED_FIRST = Layout(name="i o s", to_torch=_same, from_torch=_as_is)
CHANNELS_LAST = Layout(name="s i o", to_torch=_last_first, from_torch=_first_last)
TRANSPOSED_LAST = Layout(name="s o i", to_torch=_last_first, from_torch=_first_last)
TRANSPOSED_FLIPPED = Layout(
    name="s i o, turned around", to_torch=_flipped_first, from_torch=_flipped_last
)
TRANSPOSED_SWAPPED = Layout(
    name="s o i, turned around", to_torch=_flipped_swapped, from_torch=_flipped_swapped_back
)
TRANSPOSED_FIRST_FLIPPED = Layout(
    name="o i s, turned around", to_torch=_flipped_pair, from_torch=_flipped_pair_back
)
DEPTHWISE_LAST = Layout(name="s i m", to_torch=_depthwise, from_torch=_depthwise_back)
DENSE_OUT_IN = Layout(name="o i", to_torch=_same, from_torch=_as_is, ranks=(2,))
DENSE_IN_OUT = Layout(name="i o", to_torch=_turned, from_torch=_turned_back, ranks=(2,))


def permute_flattened(kernel: np.ndarray, spatial: Shape, *, to_channels_first: bool) -> np.ndarray:
    """Reorder the inputs of a dense kernel `(o, i)` behind a flattened feature map.

    Args:
        kernel: Shape `(o, s c)`.
        spatial: Spatial sizes of the feature map.
        to_channels_first: From `(s, c)` to `(c, s)`, or back.

    Returns:
        The kernel with its inputs in the other order.

    Example:
        >>> import numpy as np
        >>> permute_flattened(np.arange(6)[None], (3,), to_channels_first=True)
        array([[0, 2, 4, 1, 3, 5]])
    """
    out, total = kernel.shape
    n = len(spatial)
    channels = total // int(np.prod(spatial))
    if to_channels_first:
        parts, order = (out, *spatial, channels), (0, n + 1, *range(1, n + 1))
    else:
        parts, order = (out, channels, *spatial), (0, *range(2, n + 2), 1)
    return kernel.reshape(parts).transpose(order).reshape(out, total)

"""The sums of the backward pass over rows of channels: of g * (x - mean), and of g."""

from functools import cache
from typing import Any

from bnkit.ops.kernels.activations import through
from bnkit.ops.kernels.compiled import specialized
from bnkit.ops.kernels.streams import run_of
from bnkit.ops.kernels.vector import accumulate, fma, lanes, load, load_part, number, spread

# Rows read side by side: as many terms are added in the precision of x.
_TOGETHER = 4

# what these names mean is set anew for each variant of a loop: `specialized`
residual: Any = None
carry: Any = None
add: Any = None


def _run_add_products(
    grad: Any, x: Any, added: Any, base: int, shape: Any, affine: Any, sums: Any, slope: Any
) -> None:
    rows, width, stride, jump = shape
    size = lanes(x)
    room = sums.size // 2
    steep, zero = spread(slope), spread(number(x, 0))
    k = 0
    while k + size <= width:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        p, q = zero, zero
        for i in range(rows):
            at = base + i * jump + k
            d = load(x, at) - m
            z = fma(d, w, b)
            if residual:
                z += load(added, at)
            g = carry(x, load(grad, at), z, steep)
            p, q = fma(g, d, p), q + g
        accumulate(sums, k, p)
        accumulate(sums, room + k, q)
        k += size
    left = width - k
    if left:
        m, w, b = load(affine, k), load(affine, stride + k), load(affine, 2 * stride + k)
        p, q = zero, zero
        for i in range(rows):
            at = base + i * jump + k
            d = load_part(x, at, left) - m
            z = fma(d, w, b)
            if residual:
                z += load_part(added, at, left)
            g = carry(x, load_part(grad, at, left), z, steep)
            p, q = fma(g, d, p), q + g
        accumulate(sums, k, p)
        accumulate(sums, room + k, q)


def _rows_sums(
    grad: Any, x: Any, added: Any, rows: int, affine: Any, found: Any, table: Any, slope: Any
) -> None:
    width = found.shape[1]
    stride, flat = affine.shape[1], affine.ravel()
    sums, room = table.ravel(), table.shape[1]
    for k in range(2 * room):
        sums[k] = 0
    first = 0
    while rows - first >= _TOGETHER:
        run = run_of(rows - first, width, _TOGETHER)
        shape = _TOGETHER, width, stride, run * width
        for r in range(first, first + run):
            add(grad, x, added, r * width, shape, flat, sums, slope)
        first += _TOGETHER * run
    add(grad, x, added, first * width, (rows - first, width, stride, width), flat, sums, slope)
    for k in range(width):
        found[0, k] = sums[k]
        found[1, k] = sums[room + k]


@cache
def rows_sums(act: str, residual: bool) -> Any:  # noqa: FBT001
    """The loop over a number of rows.

    Args:
        act: A name of `bnkit.ops.activation.NAMES`.
        residual: Whether something was added before the activation.

    Returns:
        `run(grad, x, added, rows, affine, found, table, slope)`; the rows of `found` (float64)
        are written with the column sums of g * (x - mean) and of g, the gradient before the
        activation; `table` is room for two rows of whole vectors, float64.
    """
    carry = through(act)
    add = specialized(_run_add_products, act=act, residual=residual, carry=carry)
    return specialized(_rows_sums, act=act, residual=residual, add=add)

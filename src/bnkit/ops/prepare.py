"""Compile the loops of the CPU before they are needed."""

from collections.abc import Callable, Sequence
from itertools import product

import torch

from bnkit.core import SpecError
from bnkit.ops.activation import NAMES, activation
from bnkit.ops.kernels.memory import TYPES
from bnkit.ops.kernels.numba_cpu import NUMBA
from bnkit.ops.registry import Affine


def prepare(
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    activations: Sequence[str] = ("none",),
    *,
    residual: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Compile what batch norms of these kinds run on the CPU, or load it where it is on disk.

    Otherwise the first batch of a kind waits for it: some ten seconds for both passes. Put it into
    the recipe of a container image, or before a measurement. The machine code is kept beside the
    sources of bnkit, or where these cannot be written, in Numba's cache folder (`NUMBA_CACHE_DIR`).

    Args:
        dtypes: Of the inputs.
        activations: Of `BatchNormAct`: any of `"none", "relu", "relu6", "leaky_relu", "silu"`.
        residual: Whether a residual will be added; layers without one are prepared in any case.
        progress: Called with the kinds that are done, their number, and the kind at work.

    Returns:
        The number of kinds.

    Raises:
        SpecError: A dtype without a loop, or an unknown activation.

    Example:
        >>> import torch, bnkit.ops
        >>> bnkit.ops.prepare([torch.float32], ["none"])
        1
    """
    _check(dtypes, activations)
    kinds = list(product(dtypes, activations, (False, True) if residual else (False,)))
    for done, (dtype, act, added) in enumerate(kinds):
        if progress is not None:
            name = f"{str(dtype).removeprefix('torch.')} {act}{' + residual' if added else ''}"
            progress(done, len(kinds), name)
        _run(dtype, act, residual=added)
    if progress is not None:
        progress(len(kinds), len(kinds), "")
    return len(kinds)


def _check(dtypes: Sequence[torch.dtype], activations: Sequence[str]) -> None:
    for dtype in dtypes:
        if dtype not in TYPES:
            known = ", ".join(map(str, TYPES))
            msg = f"prepare: no loop takes {dtype}. Expected dtypes among {known}."
            raise SpecError(msg)
    for act in activations:
        if act not in NAMES:
            msg = f"prepare: unknown activation {act!r}. Known: {', '.join(NAMES)}."
            raise SpecError(msg)


def _run(dtype: torch.dtype, act: str, *, residual: bool) -> None:
    """Every operation once, on an input of eight values."""
    x = torch.zeros(2, 2, 2, dtype=dtype)
    reason = NUMBA.refuses(x, None)
    if reason is not None:
        msg = f"prepare: the loops cannot run here: {reason}."
        raise SpecError(msg)
    affine = Affine(None, None, 1.0, x if residual else None, activation(act))
    y, statistics = NUMBA.train(x, affine)
    mean, m2 = statistics[0], statistics[1]
    NUMBA.backward(y, x, affine, mean, m2)
    NUMBA.evaluate(x, mean, m2, affine)
    NUMBA.moments(x)

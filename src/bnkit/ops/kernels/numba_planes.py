"""Planes over several threads: each takes a range of channels."""

import numpy as np
from torch import Tensor

from bnkit.ops.kernels import threads
from bnkit.ops.kernels.memory import Memory, added, flat, flat_outputs, planes_in_cache, slope_of
from bnkit.ops.registry import Affine


def train_planes(
    x: Tensor, y: Tensor, affine: Affine, memory: Memory, parameters: np.ndarray
) -> np.ndarray:
    """Training forward into y; returns mean and m2."""
    from bnkit.ops.kernels.planes import planes_train

    c = memory.shape[1]
    loop = planes_train(affine.act.name, affine.residual is not None)
    statistics, table = np.empty((2, c)), np.empty((3, c), parameters.dtype)
    arrays = flat(x), added(affine, x), flat(y)
    parts = threads.split(c, threads.workers(x.numel()))
    block = planes_in_cache(x, memory)
    results = parameters, affine.eps, statistics, table, slope_of(affine, x)
    threads.run(lambda i: loop(*arrays, memory.shape, parts[i], block, *results), parts)
    return statistics


def backward_planes(
    given: tuple[Tensor, Tensor, Affine],
    outputs: tuple[Tensor, Tensor | None],
    memory: Memory,
    tables: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Gradients by x and the residual into `outputs`; returns those of weight and bias."""
    from bnkit.ops.kernels.planes import planes_backward

    grad_y, x, affine = given
    table, invstd = tables
    c = memory.shape[1]
    loop = planes_backward(affine.act.name, affine.residual is not None)
    sums = np.empty((2, c))
    arrays = flat(grad_y), flat(x), added(affine, x), *flat_outputs(outputs)
    parts = threads.split(c, threads.workers(x.numel()))
    block = max(1, planes_in_cache(x, memory) // 2)
    rest = table, invstd, sums, slope_of(affine, x)
    threads.run(lambda i: loop(*arrays, memory.shape, parts[i], block, *rest), parts)
    return sums

"""The GPU kernel: Triton, for both memory formats, with statistics of at least float32.

Triton itself is imported by the first batch norm that this kernel runs. On the CPU it runs only
when it is forced and Triton's interpreter is on (`TRITON_INTERPRET=1` before Triton is imported),
which is how the tests run it. Speed on a GPU is unmeasured; `benchmarks/gpu.py` measures it.
"""

import contextlib
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from bnkit.core import Moments
from bnkit.ops.kernels.memory import known_memory, memory_of
from bnkit.ops.kernels.triton_config import Shape, accumulating, streaming
from bnkit.ops.registry import Affine, Backward, Kernel, Train, forced_kernel
from bnkit.ops.update import Update

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INSTALLED = find_spec("triton") is not None
# Triton's own floor on NVIDIA's GPUs
_CAPABILITY = (8, 0)
# The interpreter runs one program after the other: a few, so that the merge has work.
_INTERPRETED_PROCESSORS = 2


def refuses(x: Tensor, residual: Tensor | None = None) -> str | None:
    """Why Triton cannot run an input, or None.

    Args:
        x: The input.
        residual: What is added before the activation.

    Returns:
        The reason.
    """
    reason = _no_device(x.device)
    if reason is not None:
        return reason
    if x.dtype not in _DTYPES:
        return f"it has no code for {x.dtype}"
    if x.ndim < 2:
        return f"x of {x.ndim} dimensions has no channels"
    if x.numel() == 0:
        return "x is empty"
    if memory_of(x) is None:
        return f"x is neither contiguous nor channels-last (strides {tuple(x.stride())})"
    return None if residual is None else _unlike(residual, x)


def moments(x: Tensor) -> Moments:
    """Count, mean and m2 of a batch that this kernel does not refuse.

    Args:
        x: Channels at dimension 1.

    Returns:
        The moments, to be merged with those of other batches or ranks by `bnkit.core.merge`.
    """
    from bnkit.ops.kernels import triton_forward as forward

    shape, dtype = _shape(x), _wide(x)
    with _on(x):
        partial = forward.partial_moments(x, shape, streaming(shape, *_machine(x)), dtype)
        return Moments(_count(shape), *forward.merge_moments(x, shape, partial))


def train(
    x: Tensor, affine: Affine, _update: Update | None = None, _out: Tensor | None = None
) -> Train:
    """Training forward."""
    count, mean, m2 = moments(x)
    return Train(_normalized(x, (mean, m2, count), affine), (mean, m2))


def evaluate(x: Tensor, mean: Tensor, var: Tensor, affine: Affine) -> Tensor:
    """Inference forward."""
    return _normalized(x, (mean, var, 1), affine)


def backward(grad_y: Tensor, x: Tensor, affine: Affine, mean: Tensor, m2: Tensor) -> Backward:
    """Gradients of the training form."""
    from bnkit.ops.kernels import triton_backward as kernels

    shape, affine = _shape(x), _dense(affine)
    if _unlike(grad_y, x) is not None:
        grad_y = torch.empty_like(x).copy_(grad_y)
    arrays = grad_y, x, affine.residual
    statistics = *_widened(x, mean, m2), _count(shape)
    with _on(x):
        launch = accumulating(shape, *_machine(x))
        sums = kernels.parameter_gradients(arrays, statistics, affine, shape, launch)
        launch = streaming(shape, *_machine(x))
        by_x, by_residual = kernels.input_gradients(
            arrays, (statistics, sums), affine, shape, launch
        )
    return Backward(by_x, sums[0], sums[1], by_residual)


def _normalized(x: Tensor, statistics: tuple[Tensor, Tensor, int], affine: Affine) -> Tensor:
    from bnkit.ops.kernels.triton_forward import normalize

    mean, m2, count = statistics
    shape = _shape(x)
    with _on(x):
        launch = streaming(shape, *_machine(x))
        return normalize(x, (*_widened(x, mean, m2), count), _dense(affine), shape, launch)


def _no_device(device: torch.device) -> str | None:
    if not _INSTALLED:
        return "Triton is not installed"
    if device.type == "cpu" and forced_kernel() == TRITON.name and _interpreted():
        return None
    if device.type != "cuda":
        return f"it runs on CUDA, x is on {device}"
    have = _capability(device)
    if have < _CAPABILITY:
        return f"it needs compute capability {_CAPABILITY}, {device} has {have}"
    return None


def _unlike(other: Tensor, x: Tensor) -> str | None:
    if other.device != x.device:
        return f"x is on {x.device}, the residual on {other.device}"
    if other.dtype not in _DTYPES:
        return f"it has no code for a residual of {other.dtype}"
    if other.shape != x.shape or memory_of(other) != memory_of(x):
        return "the residual does not lie in memory as x does"
    return None


def _shape(x: Tensor) -> Shape:
    rows, (n, c, s) = known_memory(x)
    return (n * s, c, 1) if rows else (n, c, s)


def _count(shape: Shape) -> int:
    return shape[0] * shape[2]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _widened(x: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor]:
    dtype = _wide(x)
    return mean.to(dtype).contiguous(), m2.to(dtype).contiguous()


def _dense(affine: Affine) -> Affine:
    weight, bias = (None if v is None else v.contiguous() for v in (affine.weight, affine.bias))
    return affine._replace(weight=weight, bias=bias)


def _machine(x: Tensor) -> tuple[int, int]:
    """Bytes of a value as it is computed with, and multiprocessors."""
    return _wide(x).itemsize, _processors(x.device)


def _on(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@cache
def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    # AMD's numbers are not NVIDIA's
    return torch.cuda.get_device_capability(device) if torch.version.hip is None else _CAPABILITY


@cache
def _interpreted() -> bool:
    """Whether the interpreter was on when Triton was imported."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(tl.sum, InterpretedFunction)


def _mean_and_m2(x: Tensor) -> tuple[Tensor, Tensor]:
    return moments(x)[1:]


TRITON = Kernel("triton", refuses, train, backward, evaluate, _mean_and_m2)

"""Which kernel runs a batch norm: the candidates, the choice, and the reason for it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from bnkit.core import BatchNormError, SpecError
from bnkit.ops.activation import IDENTITY, Activation


class KernelUnavailableError(BatchNormError, RuntimeError):
    """A kernel was forced that cannot run here."""


class Affine(NamedTuple):
    """Scale and shift of a batch norm, and what is fused behind it.

    Attributes:
        weight: Shape `(c,)`, or None for 1.
        bias: Shape `(c,)`, or None for 0.
        eps: Added to the variance.
        residual: Added before the activation; shaped like x, or None.
        act: The activation.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    residual: Tensor | None = None
    act: Activation = IDENTITY


class Train(NamedTuple):
    """What a training forward pass gives.

    Attributes:
        y: The output.
        statistics: Mean and m2 of the batch, each of shape `(c,)` and at least float32: a pair, or
            the rows of one tensor.
    """

    y: Tensor
    statistics: tuple[Tensor, Tensor] | Tensor

    @property
    def mean(self) -> Tensor:
        """Of each channel."""
        return self.statistics[0]

    @property
    def m2(self) -> Tensor:
        """Of each channel: the sum of squared deviations from the mean."""
        return self.statistics[1]


class Backward(NamedTuple):
    """Gradients; those of weight and bias in the dtype of the statistics."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of the operators.

    Attributes:
        name: What `use_kernel` and `BNKIT_KERNEL` call it.
        refuses: `refuses(x, residual) -> reason` why it cannot run that input, or None.
        train: `train(x, affine, update, out) -> Train`; what to do with the statistics is given
            only to kernels that do it, and `out`, which may be x, may be left aside.
        backward: `backward(grad_y, x, affine, mean, m2) -> Backward`.
        evaluate: `evaluate(x, mean, var, affine) -> y`.
        moments: `moments(x) -> (mean, m2)` of a batch, to be merged with those of others.
        updates: Whether `train` averages the batch into running statistics.
        frozen: `backward` where mean and m2 are constants; None = it has none.
    """

    name: str
    refuses: Callable[[Tensor, Tensor | None], str | None]
    train: Callable[..., Train]
    backward: Callable[[Tensor, Tensor, Affine, Tensor, Tensor], Backward]
    evaluate: Callable[[Tensor, Tensor, Tensor, Affine], Tensor]
    moments: Callable[[Tensor], tuple[Tensor, Tensor]]
    updates: bool = False
    frozen: Callable[[Tensor, Tensor, Affine, Tensor, Tensor], Backward] | None = None


class Candidate(NamedTuple):
    """One row of `explain`."""

    name: str
    taken: bool
    reason: str


_KERNELS: dict[str, Kernel] = {}
# read once: looking it up costs a microsecond, and this runs for every batch norm
_FROM_ENVIRONMENT = os.environ.get("BNKIT_KERNEL") or None
_FORCED: ContextVar[str | None] = ContextVar("bnkit_kernel", default=None)


def register(kernel: Kernel) -> Kernel:
    """Add a kernel; those added first are preferred."""
    _KERNELS[kernel.name] = kernel
    return kernel


def kernel_names() -> tuple[str, ...]:
    """The names that `use_kernel` takes, in the order of preference."""
    return tuple(_KERNELS)


@contextlib.contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Force a kernel in this context; the environment variable `BNKIT_KERNEL` does it for all.

    Args:
        name: One of `kernel_names()`.

    Yields:
        Nothing.

    Raises:
        SpecError: An unknown name.
    """
    _check_name(name, "use_kernel")
    token = _FORCED.set(name)
    try:
        yield
    finally:
        _FORCED.reset(token)


def forced_kernel() -> str | None:
    """The name of the kernel that is forced now, if any."""
    name = _FORCED.get() or _FROM_ENVIRONMENT
    if name is not None and name not in _KERNELS:
        _check_name(name, "BNKIT_KERNEL")
    return name


def choose(x: Tensor, residual: Tensor | None = None) -> Kernel:
    """The first kernel that does not refuse the input, or the forced one.

    Args:
        x: The input.
        residual: What is added before the activation, if anything.

    Returns:
        The kernel.

    Raises:
        KernelUnavailableError: The forced kernel refuses the input.
    """
    name = forced_kernel()
    if name is not None:
        kernel = _KERNELS[name]
        reason = kernel.refuses(x, residual)
        if reason is not None:
            msg = (
                f"kernel {name!r} was forced but cannot run: {reason}. Drop use_kernel or "
                "BNKIT_KERNEL to let bnkit choose; bnkit.ops.explain(x) shows what it would take."
            )
            raise KernelUnavailableError(msg)
        return kernel
    for kernel in _KERNELS.values():
        if kernel.refuses(x, residual) is None:
            return kernel
    msg = f"no kernel takes x of shape {tuple(x.shape)}, {x.dtype}, {x.device}"
    raise KernelUnavailableError(msg)


def explain(x: Tensor, residual: Tensor | None = None) -> "Explanation":
    """Every candidate for an input, with the reason why it is taken or not.

    Args:
        x: The input of a batch norm.
        residual: What is added before the activation, if anything.

    Returns:
        The candidates; printing it gives a table.

    Example:
        >>> import torch, bnkit.ops
        >>> [c.name for c in bnkit.ops.explain(torch.zeros(2, 3)).candidates if c.taken]
        ['numba']
    """
    forced = forced_kernel()
    rows, taken = [], False
    for kernel in _KERNELS.values():
        refusal = kernel.refuses(x, residual)
        wanted = forced in (None, kernel.name)
        take = refusal is None and wanted and not taken
        taken = taken or take
        if take:
            reason = "forced" if forced else "the first that takes this input"
        else:
            reason = refusal or ("not the forced one" if not wanted else "not needed")
        rows.append(Candidate(kernel.name, take, reason))
    return Explanation(tuple(rows))


class Explanation(NamedTuple):
    """What `explain` found."""

    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.candidates)
        rows = (f"{'*' if c.taken else ' '} {c.name:{width}}  {c.reason}" for c in self.candidates)
        return "\n".join(rows)


def _check_name(name: str, where: str) -> None:
    if name not in _KERNELS:
        msg = f"{where}: unknown kernel {name!r}. Known: {', '.join(_KERNELS)}."
        raise SpecError(msg)

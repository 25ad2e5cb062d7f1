"""Functional batch norm with the signature of `torch.nn.functional.batch_norm`."""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bnkit import ops
from bnkit.core import EmptyBatchWarning, InputError
from bnkit.nn.checks import (
    check_batch,
    check_eval_eps,
    check_finite,
    check_policy,
    check_residual,
    check_tensors,
)
from bnkit.ops import IDENTITY, Activation, NonFinitePolicy, StatisticsBuffers, Update


def batch_norm(
    input: Float[Tensor, "n c *spatial"],
    running_mean: Float[Tensor, " c"] | None,
    running_var: Float[Tensor, " c"] | None,
    weight: Float[Tensor, " c"] | None = None,
    bias: Float[Tensor, " c"] | None = None,
    training: bool = False,  # noqa: FBT001, FBT002  the signature of torch
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    num_batches_tracked: Int[Tensor, ""] | None = None,
    nonfinite_batches: Int[Tensor, ""] | None = None,
    residual: Float[Tensor, "n c *spatial"] | None = None,
    act: Activation = IDENTITY,
    inplace: bool = False,
    on_nonfinite: NonFinitePolicy = "propagate",
    where: Callable[[], str] = lambda: "batch_norm",
) -> Float[Tensor, "n c *spatial"]:
    """Batch norm over dimension 1, like `torch.nn.functional.batch_norm`; `act(y + residual)`.

    Training normalizes with the statistics of the batch (variance divided by n) and averages
    them into the running ones (variance divided by n - 1, weight `momentum` for the new batch).
    Statistics are computed in at least float32, equally well in both memory formats.

    Args:
        input: Values; 16-bit input may come with float32 weights and statistics.
        running_mean: Changed in place by training; None = not kept.
        running_var: Changed in place by training; None = not kept.
        weight: Scale, or None for 1.
        bias: Shift, or None for 0.
        training: Use batch statistics instead of the running ones.
        momentum: Weight of the new batch; None = cumulative average by `num_batches_tracked`.
        eps: Added to the variance; positive in training.
        num_batches_tracked: Incremented by each batch that enters the running statistics.
        nonfinite_batches: Incremented by each batch that was left out.
        residual: Added before the activation; shaped like the input.
        act: Fused behind the batch norm; `bnkit.ops.activation` makes it from a name.
        inplace: Write over the input in training where that can be undone, as the layers do.
        on_nonfinite: Whether a batch with NaN or infinity enters the running statistics.
            `"propagate"` is what torch does; the layers use `"skip"`.
        where: Called for the name at the head of an error message.

    Returns:
        The normalized values, with the dtype and memory format of the input.

    Raises:
        InputError: Wrong rank, channels, dtype or device; `eps <= 0` or one value per channel in
            training.
        NonFiniteError: With `on_nonfinite="raise"`, after nothing was changed; not from a
            compiled graph.

    Example:
        >>> import torch, bnkit.nn.functional as F
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> F.batch_norm(x, None, None, training=True).flatten().tolist()
        [-0.99999..., 0.99999...]
    """
    if input.ndim < 2 and input.numel() == 0:
        return input.clone()
    named = {
        "running_mean": running_mean,
        "running_var": running_var,
        "weight": weight,
        "bias": bias,
    }
    check_tensors(where, input, named)
    check_residual(where, input, residual)
    check_policy(where, on_nonfinite)
    if not training:
        check_eval_eps(where, eps)
        if running_mean is None or running_var is None:
            msg = f"{where()}: running_mean and running_var must be given unless training=True."
            raise InputError(msg)
        return ops.batch_norm_eval(
            input, (running_mean, running_var), weight, bias, eps, residual=residual, act=act
        )
    check_batch(where, input, eps)
    buffers = StatisticsBuffers(running_mean, running_var, num_batches_tracked, nonfinite_batches)
    step = ops.batch_norm_step(
        input,
        weight,
        bias,
        eps,
        residual=residual,
        act=act,
        update=Update(buffers, momentum, on_nonfinite),
        inplace=inplace,
    )
    if input.numel() == 0:
        _warn_empty(where, input)
    elif on_nonfinite == "raise" and not torch.compiler.is_compiling():
        check_finite(where, step.mean, step.m2)
    return step.y


def _warn_empty(where: Callable[[], str], input: Tensor) -> None:
    message = (
        f"{where()}: the batch is empty (input of shape {tuple(input.shape)}); the running "
        "statistics and their counter are left alone."
    )
    warnings.warn(message, EmptyBatchWarning, stacklevel=3)

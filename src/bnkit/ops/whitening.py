"""Whitening on torch tensors: the inverse square root of a covariance, and its derivatives."""

from typing import Any

import array_api_compat.torch as xp
import torch
from jaxtyping import Float
from torch import Tensor

from bnkit.core import Whitening, inverse_root, lyapunov, newton_inverse_root, upcast


def whitening_matrix(
    covariance: Float[Tensor, "g d d"], method: Whitening, iterations: int
) -> Float[Tensor, "g d d"]:
    """`covariance**(-1/2)`, differentiable any number of times.

    Args:
        covariance: Symmetric and positive definite; one that is not finite gives NaN.
        method: `"zca"`: by eigenvectors, the gradient in closed form. `"newton"`: by iteration,
            the gradient by autograd.
        iterations: Of Newton's.

    Returns:
        A symmetric matrix for each group.
    """
    # eigh raises where there is NaN, and a product would spread it over other groups' gradients
    finite = torch.isfinite(covariance).all()
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    safe = torch.where(finite, covariance, eye)
    if method == "zca":
        found = _InverseRoot.apply(safe)[0]  # pyright: ignore[reportIndexIssue]
    else:
        found = newton_inverse_root(xp, safe, iterations)
    return torch.where(finite, found, torch.full_like(found, float("nan")))


def grouped_covariance(
    x: Float[Tensor, "n c *spatial"], groups: int
) -> tuple[Float[Tensor, " c"], Float[Tensor, "g d m"], Float[Tensor, "g d d"]]:
    """Mean, deviations and covariance (divided by the count) of each group of channels.

    Args:
        x: Batch; 16 bits are widened.
        groups: Neighbouring channels are a group.

    Returns:
        The mean of each channel, deviations with all values last, and the covariances.
    """
    values = by_group(upcast(xp, x), groups)
    mean = values.mean(-1, keepdim=True)
    deviations = values - mean
    covariance = deviations @ deviations.mT / deviations.shape[-1]
    return mean.flatten(), deviations, covariance


def by_group(x: Float[Tensor, "n c *spatial"], groups: int) -> Float[Tensor, "g d m"]:
    """Channels by group, all their values last."""
    return x.transpose(0, 1).reshape(groups, x.shape[1] // groups, -1)


def from_groups(y: Float[Tensor, "g d m"], like: Tensor) -> Float[Tensor, "n c *spatial"]:
    """The inverse of `by_group`."""
    shape = (like.shape[1], like.shape[0], *like.shape[2:])
    return y.reshape(shape).transpose(0, 1)


class _InverseRoot(torch.autograd.Function):
    """`S**(-1/2)`; its gradient is `lyapunov(S**(1/2), -W G W)`, see `bnkit.core.lyapunov`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(inverse_root(xp, covariance))  # pyright: ignore[reportReturnType]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        covariance, matrix, vectors, roots = ctx.saved_tensors
        grad = (grads[0] + grads[0].mT) / 2
        root = covariance @ matrix
        return _Lyapunov.apply(root, -matrix @ grad @ matrix, vectors, roots)  # pyright: ignore


class _Lyapunov(torch.autograd.Function):
    """The symmetric X with `R X + X R = C`; `vectors` and `roots` are constants that R has."""

    generate_vmap_rule = True

    @staticmethod
    def forward(root: Tensor, right: Tensor, vectors: Tensor, roots: Tensor) -> Tensor:
        del root  # known by its eigenvectors; here for its gradient
        return lyapunov(xp, right, vectors, roots)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        root, _, vectors, roots = inputs
        ctx.save_for_backward(root, vectors, roots, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        root, vectors, roots, found = ctx.saved_tensors
        right: Any = _Lyapunov.apply(root, grads[0], vectors, roots)
        return -(found @ right + right @ found), right, None, None

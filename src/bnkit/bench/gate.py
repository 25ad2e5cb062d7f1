"""The gate before the clock: output, gradients and statistics against float64.

A shape passes if every error is at most twice that of torch's better memory format, or below what
float32 itself explains. With u = 2^-24, a = |mean| / std and X the largest |xhat|, one rounding
of the mean and four of the value give xhat an error of at most `d = u (a + 4 X)`; the bounds
follow from it, with a factor of 2 for the errors of the statistics:

    y             2 (|weight| d + 2 u |z|)
    grad_x        2 |weight| invstd (3 u |g| + 4 u mean|g| + d mean|g xhat| + 4 u X mean|g xhat|)
    grad_weight   4 u sum|g xhat| + u a |sum g|
    grad_bias     4 u sum|g|
    running_mean  u (2 |mean| + 4 std)
    running_var   8 u var

The sums allow four roundings a term, as if all had one sign. Where |z| is below its own bound the
derivative of ReLU cannot be known, and the incoming gradient is 0 there.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnkit.bench.providers import BNKIT, TORCH, Inputs, Layers, make_inputs, with_parameters
from bnkit.bench.results import Check
from bnkit.bench.shapes import Shape
from bnkit.bench.traffic import Operator
from bnkit.core.errors import BatchNormError

MEANS = (0.0, 30.0, 1000.0)
_U = 2.0**-24


class GateError(BatchNormError, AssertionError):
    """A kernel's numbers are wrong; nothing was timed."""


class Truth(NamedTuple):
    """What float64 says, and what float32 may miss it by."""

    values: dict[str, Tensor]
    bounds: dict[str, float]
    grad_y: Tensor


def check_shape(
    shape: Shape,
    operator: Operator,
    mean: float,
    *,
    layers: Layers = BNKIT,
) -> tuple[Check, ...]:
    """Compare one operator on one shape with float64, in every memory format.

    Args:
        shape: Sizes of the input.
        operator: What is computed.
        mean: Mean of the input; its standard deviation is 1.
        layers: Whose numbers are checked.

    Returns:
        One check for each quantity and memory format.
    """
    inputs = {f: make_inputs(shape, f, operator, mean=mean) for f in shape.formats}
    first = next(iter(inputs.values()))
    model = with_parameters(TORCH.layer(operator, shape.sizes[1], len(shape.sizes)))
    truth = _truth(first, *model.parameters(), relu=operator != "bn")
    theirs = [_errors(TORCH, operator, i, truth) for i in inputs.values()]
    best = {name: _smallest(e[name] for e in theirs) for name in truth.values}
    return tuple(
        Check(shape.sizes, f, operator, mean, name, error, best[name], truth.bounds[name])
        for f, given in inputs.items()
        for name, error in _errors(layers, operator, given, truth).items()
    )


def require(checks: Iterable[Check]) -> None:
    """Stop at the first red check.

    Args:
        checks: What `check_shape` found.

    Raises:
        GateError: One of them has not passed.
    """
    for check in checks:
        if not check.passed:
            msg = (
                f"{check.operator} on {check.sizes} {check.memory_format}, mean {check.mean:g}: "
                f"expected an error of {check.quantity} of at most {2 * check.torch:.2g} (twice "
                f"torch's) or {check.bound:.2g} (what float32 explains), got {check.error:.2g}. "
                "Nothing was timed: a wrong kernel has no speed."
            )
            raise GateError(msg)


def _errors(layers: Layers, operator: Operator, given: Inputs, truth: Truth) -> dict[str, float]:
    """Largest errors of one forward and backward pass, by quantity."""
    layer = with_parameters(layers.layer(operator, given.x.shape[1], given.x.ndim)).train()
    batch_norm = next(m for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    batch_norm.momentum = 1.0
    wanted = (*given.given, *layer.parameters())
    y = layer(*given.given)
    grad_y = torch.empty_like(given.x).copy_(truth.grad_y)
    names = ["grad_x", "grad_residual", "grad_weight", "grad_bias"]
    if given.residual is None:
        names.remove("grad_residual")
    got = dict(zip(names, torch.autograd.grad(y, wanted, grad_y), strict=True))
    got |= {"y": y, **dict(batch_norm.named_buffers())}
    return {name: _error(got[name], true) for name, true in truth.values.items()}


def _error(got: Tensor, true: Tensor) -> float:
    return float(_largest(true - got.detach().contiguous()) / _largest(true).clamp_min(1e-300))


def _largest(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, torch.inf)


def _smallest(errors: Iterable[float]) -> float:
    """The smallest error that is a number."""
    return min((e for e in errors if e == e), default=0.0)


class _InputError(NamedTuple):
    """What rounding the input costs: mean / std, the largest xhat, the error of xhat and of y."""

    mean: Tensor
    top: Tensor
    xhat: Tensor
    y: Tensor


class _Sizes(NamedTuple):
    """How large the parts of a gradient are: `weight * invstd`, g, sums of |g| and |g xhat|."""

    slope: Tensor
    g: Tensor
    absolute: tuple[Tensor, ...]
    sum_g: Tensor
    values: int


def _gradient_bounds(error: _InputError, size: _Sizes) -> dict[str, Tensor]:
    abs_g, abs_gx = size.absolute
    sums = (4 * _U * abs_g + (error.xhat + 4 * _U * error.top) * abs_gx) / size.values
    return {
        "grad_x": 2 * size.slope * (3 * _U * size.g + sums),
        "grad_weight": 4 * _U * abs_gx + _U * error.mean * size.sum_g,
        "grad_bias": 4 * _U * abs_g,
    }


def _truth(inputs: Inputs, weight: Tensor, bias: Tensor, *, relu: bool) -> Truth:
    x = inputs.x.detach().double()
    axes = (0, *range(2, x.ndim))
    w, b = (p.detach().double().reshape(-1, *(1,) * (x.ndim - 2)) for p in (weight, bias))
    n = x.numel() // x.shape[1]
    mean = x.mean(axes, keepdim=True)
    var = (x - mean).square_().mean(axes, keepdim=True)
    invstd = (var + 1e-5).rsqrt()
    xhat = x.sub_(mean).mul_(invstd)
    z = xhat * w + b
    if inputs.residual is not None:
        z = z + inputs.residual.detach().double()
    a, top = (mean.abs() * invstd).max(), _largest(xhat)
    d = _U * (a + 4 * top)
    bound_y = 2 * (w.abs().max() * d + 2 * _U * _largest(z))
    g = inputs.grad_y.double()
    grad_y = torch.where(z.abs() <= bound_y, 0.0, g) if relu else g
    g = grad_y * (z > 0) if relu else grad_y
    gx = g * xhat
    sum_g, sum_gx = g.sum(axes, keepdim=True), gx.sum(axes, keepdim=True)
    values = {
        "y": torch.relu(z) if relu else z,
        "grad_x": w * invstd * (g - sum_g / n - xhat * sum_gx / n),
        "grad_weight": sum_gx.flatten(),
        "grad_bias": sum_g.flatten(),
        "running_mean": mean.flatten(),
        "running_var": var.flatten() * (n / (n - 1)),
    }
    absolute = tuple(torch.linalg.vector_norm(v, 1, axes).max() for v in (g, gx))
    input_error = _InputError(a, top, d, bound_y)
    sizes = _Sizes((w * invstd).abs().max(), _largest(g), absolute, sum_g.abs().max(), n)
    bounds = _gradient_bounds(input_error, sizes) | {
        "y": bound_y,
        "running_mean": _U * (2 * mean.abs().max() + 4 * var.max().sqrt()),
        "running_var": 8 * _U * values["running_var"].max(),
    }
    if inputs.residual is not None:
        values["grad_residual"], bounds["grad_residual"] = g, torch.zeros(())
    scaled = {k: float(bound / _largest(values[k])) for k, bound in bounds.items()}
    return Truth(values, scaled, grad_y)

"""The registered operators: signature, fake, autograd. What runs behind them is a kernel.

    bnkit::batch_norm_train     (x, weight, bias, residual, eps, act, slope) -> (y, mean, m2)
    bnkit::batch_norm_backward  (grad_y, x, weight, bias, residual, mean, m2, eps, act, slope)
                                -> (grad_x, grad_weight, grad_bias, grad_residual)
    bnkit::batch_norm_eval      (x, mean, var, weight, bias, residual, eps, act, slope) -> y

A gradient by a residual that was not given is an empty tensor.
"""

import torch
from torch import Tensor

from bnkit.ops.activation import Activation
from bnkit.ops.kernels.numba_cpu import NUMBA
from bnkit.ops.kernels.reference import REFERENCE
from bnkit.ops.kernels.triton_gpu import TRITON
from bnkit.ops.registry import Affine, choose, register

register(NUMBA)
register(TRITON)
register(REFERENCE)

_AFFINE = "Tensor? weight, Tensor? bias, Tensor? residual"
_END = "float eps, str act, float slope"
_library = torch.library.Library("bnkit", "DEF")
_library.define(f"batch_norm_train(Tensor x, {_AFFINE}, {_END}) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"batch_norm_backward(Tensor grad_y, Tensor x, {_AFFINE}, Tensor mean, Tensor m2, {_END})"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(f"batch_norm_eval(Tensor x, Tensor mean, Tensor var, {_AFFINE}, {_END}) -> Tensor")

Optional = Tensor | None


def _train(
    x: Tensor,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    affine = Affine(weight, bias, eps, residual, Activation(act, slope))
    y, (mean, m2) = choose(x, residual).train(x, affine, None)
    return y, mean.clone(), m2.clone()  # results of an operator may not share memory


def _train_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    mean: Tensor,
    m2: Tensor,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    affine = Affine(weight, bias, eps, residual, Activation(act, slope))
    g = choose(x, residual).backward(grad_y, x, affine, mean, m2)
    by_residual = x.new_empty(0) if g.residual is None else g.residual
    return g.x, g.weight.clone(), g.bias.clone(), by_residual


def _eval(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Optional,
    bias: Optional,
    residual: Optional,
    eps: float,
    act: str,
    slope: float,
) -> Tensor:
    affine = Affine(weight, bias, eps, residual, Activation(act, slope))
    return choose(x, residual).evaluate(x, mean, var, affine)


for _name, _run in (
    ("batch_norm_train", _train),
    ("batch_norm_backward", _train_backward),
    ("batch_norm_eval", _eval),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _run, _device)


def _statistic(x: Tensor) -> Tensor:
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    return x.new_empty(x.shape[1], dtype=torch.float32 if narrow else x.dtype)


@torch.library.register_fake("bnkit::batch_norm_train", lib=_library)
def _fake_train(x, weight, bias, residual, eps, act, slope):  # noqa: ANN001, ANN202, ARG001
    mean = _statistic(x)
    return torch.empty_like(x), mean, mean.new_empty(mean.shape, dtype=mean.dtype.to_real())


@torch.library.register_fake("bnkit::batch_norm_backward", lib=_library)
def _fake_backward(grad_y, x, weight, bias, residual, mean, m2, eps, act, slope):  # noqa: ANN001, ANN202, ARG001
    by_residual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    return torch.empty_like(x), _statistic(x), _statistic(x), by_residual


@torch.library.register_fake("bnkit::batch_norm_eval", lib=_library)
def _fake_eval(x, mean, var, weight, bias, residual, eps, act, slope):  # noqa: ANN001, ANN202, ARG001
    return torch.empty_like(x)


OPERATORS = torch.ops.bnkit

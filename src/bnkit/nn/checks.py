"""What a batch norm demands of its input: one message each, where, expected, got, what to do."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from bnkit.core import InputError, NonFiniteError
from bnkit.ops import NonFinitePolicy

_HALF = (torch.float16, torch.bfloat16)
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_POLICIES = get_args(NonFinitePolicy)
Where = Callable[[], str]


def check_rank(where: Where, x: Tensor, ranks: tuple[int, ...]) -> None:
    """Raise `InputError` unless `x` has one of the ranks."""
    if x.ndim not in ranks:
        layout = {2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}
        expected = " or ".join(f"{r}D" for r in ranks)
        shapes = " or ".join(layout[r] for r in ranks)
        known = x.ndim in layout and x.ndim + 1 not in ranks
        cure = (
            f"The layer for it is BatchNorm{max(x.ndim - 2, 1)}d."
            if known
            else "Is the batch dimension missing? Add it with x.unsqueeze(0)."
        )
        msg = (
            f"{where()}: expected {expected} input {shapes} (got {x.ndim}D input of shape "
            f"{tuple(x.shape)}). {cure}"
        )
        raise InputError(msg)


def check_tensors(where: Where, x: Tensor, named: dict[str, Tensor | None]) -> None:
    """Raise `InputError` unless each tensor fits the channels, dtype and device of `x`."""
    if x.ndim < 2:
        msg = f"{where()}: expected input (N, C, ...), got shape {tuple(x.shape)}. Add a dimension."
        raise InputError(msg)
    dtype, device = x.dtype, x.device
    channels = x.shape[1] if x.ndim > 1 else 0
    if dtype.is_floating_point:
        for t in named.values():
            if t is not None and (
                t.dtype is not dtype or t.shape != (channels,) or t.device != device
            ):
                break
        else:
            return  # the usual case, quickly
    if not (x.is_floating_point() or x.is_complex()):
        msg = f"{where()}: expected floating point input, got {x.dtype}. Call .float() on it first."
        raise InputError(msg)
    for name, tensor in named.items():
        if tensor is not None:
            _check_tensor(where, x, name, tensor)


def check_residual(where: Where, x: Tensor, residual: Tensor | None) -> None:
    """Raise `InputError` unless the residual is shaped like the input, on its device."""
    if residual is None:
        return
    if residual.shape != x.shape or residual.device != x.device or residual.dtype != x.dtype:
        msg = (
            f"{where()}: expected a residual of shape {tuple(x.shape)}, {x.dtype}, on {x.device}, "
            f"like the input, got {tuple(residual.shape)}, {residual.dtype}, on {residual.device}. "
            "Project the shortcut to the same shape first."
        )
        raise InputError(msg)


def check_batch(where: Where, x: Tensor, eps: float) -> None:
    """Raise `InputError` for `eps <= 0` or one value per channel, which training cannot use."""
    check_train_eps(where, eps)
    if x.ndim > 1 and x.numel() == x.shape[1] and x.numel() > 0:
        msg = (
            f"{where()}: expected more than 1 value per channel when training, got input size "
            f"{tuple(x.shape)}: its variance is 0, so that the output would be the bias. "
            "Use a larger batch, pass drop_last=True to the DataLoader, or call .eval() if this "
            "is inference."
        )
        raise InputError(msg)


def check_train_eps(where: Where, eps: float) -> None:
    """Raise `InputError` for `eps <= 0`."""
    if not (isinstance(eps, int | float) and eps > 0):
        msg = (
            f"{where()}: eps must be positive during training, but got {eps}: a constant channel "
            "would be divided by zero. Use e.g. eps=1e-5."
        )
        raise InputError(msg)


def check_finite(where: Where, mean: Tensor, m2: Tensor) -> None:
    """Raise `NonFiniteError` for a batch whose mean or variance is NaN or infinite."""
    if not bool(torch.isfinite(mean).all() & torch.isfinite(m2).all()):
        msg = (
            f"{where()}: NaN or infinity in the statistics of this batch; the running ones were "
            "left alone. Find where it overflows, e.g. with torch.autograd.detect_anomaly(), or "
            "use on_nonfinite='skip'."
        )
        raise NonFiniteError(msg)


def check_policy(where: Where, on_nonfinite: str) -> None:
    """Raise `InputError` for a policy that is none."""
    if on_nonfinite not in _POLICIES:
        known = ", ".join(map(repr, _POLICIES))
        msg = f"{where()}: on_nonfinite must be one of {known}, got {on_nonfinite!r}."
        raise InputError(msg)


def check_eval_eps(where: Where, eps: float) -> None:
    """Raise `InputError` for a negative eps."""
    if not (isinstance(eps, int | float) and eps >= 0):
        msg = f"{where()}: eps must be non-negative, but got {eps}. Use e.g. eps=1e-5."
        raise InputError(msg)


def _check_tensor(where: Where, x: Tensor, name: str, tensor: Tensor) -> None:
    channels = x.shape[1] if x.ndim > 1 else 0
    if tensor.shape != (channels,):
        msg = (
            f"{where()}: {name} should contain {channels} elements, the channels of the input of "
            f"shape {tuple(x.shape)}, not {tuple(tensor.shape)}. Set num_features={channels}, or "
            "check the layer before."
        )
        raise InputError(msg)
    if tensor.device != x.device:
        msg = (
            f"{where()}: expected {name} on the device of the input, {x.device}, got "
            f"{tensor.device}. Move the model or the input with .to(...)."
        )
        raise InputError(msg)
    if not _dtypes_fit(x.dtype, name, tensor.dtype):
        msg = (
            f"{where()}: expected {name} of dtype {x.dtype}, the input's, got {tensor.dtype}. "
            f"Convert one of them, e.g. input.to({tensor.dtype})."
        )
        raise InputError(msg)


def _dtypes_fit(x: torch.dtype, name: str, tensor: torch.dtype) -> bool:
    if x == tensor:
        return True
    if x in _REAL:
        return name == "running_var" and tensor == _REAL[x]
    # statistics stay in float32 for 16-bit input, and weights may
    return tensor == torch.float32 and x in _HALF

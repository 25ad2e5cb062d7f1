"""What makes it unsafe to touch a layer at all."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bnkit.fold.layers import tensors_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def ties(model: nn.Module) -> dict[int, str]:
    """Modules that share memory with others, by id, with the name of one of the others."""
    owners: dict[Any, list[tuple[int, str]]] = defaultdict(list)
    for name, module in model.named_modules():
        for key, tensor in tensors_of(module).items():
            place = _memory(tensor)
            if place is not None:
                owners[place].append((id(module), f"{name}.{key}" if name else key))
    found: dict[int, str] = {}
    for users in owners.values():
        for module, _ in users:
            other = next((n for m, n in users if m != module), None)
            if other is not None:
                found.setdefault(module, other)
    return found


def _memory(tensor: Tensor) -> Any:
    if nn.parameter.is_lazy(tensor) or tensor.device.type == "meta" or tensor.numel() == 0:
        return None
    try:
        return tensor.device, tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return None


def why_not(module: nn.Module, tied: dict[int, str]) -> str:
    """Why a layer cannot be changed, in a sentence; empty if it can.

    Args:
        module: A batch norm or a linear map.
        tied: What `ties` found.

    Returns:
        The reason.
    """
    kind = type(module).__name__
    if any(getattr(module, h) for h in _HOOKS):
        return f"{kind} has hooks, which would see other values; remove them first"
    if parametrize.is_parametrized(module):
        return f"{kind} is parametrized; call torch.nn.utils.parametrize.remove_parametrizations"
    if "forward" in module.__dict__:
        return f"the forward method of {kind} was replaced in the instance"
    if id(module) in tied:
        return f"{kind} shares a tensor with {tied[id(module)]!r}"
    return _why_not_tensors(module)


def _why_not_tensors(module: nn.Module) -> str:
    for name, tensor in tensors_of(module).items():
        if nn.parameter.is_lazy(tensor):
            return "it is lazy and has not seen an input yet"
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"its {name} is a {type(tensor).__name__}"
        if tensor.device.type == "meta":
            return f"its {name} is on the device 'meta'"
        if name in ("weight", "bias") and not tensor.dtype.is_floating_point:
            return f"its {name} is {tensor.dtype}"
    weight = module._parameters.get("weight")
    if weight is not None and weight.dtype not in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16
    ):  # fmt: skip
        return f"its weight is {weight.dtype}"
    return ""

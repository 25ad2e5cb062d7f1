"""Facts of a model that everything which runs it needs."""

import torch
from torch import nn

from bnkit.core.errors import InputError


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or buffer is; the CPU for a model without any."""
    first = next(model.parameters(), None)
    first = next(model.buffers(), None) if first is None else first
    return torch.device("cpu") if first is None else first.device


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating point parameter; torch's default without any."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    return torch.get_default_dtype() if first is None else first.dtype


def check_values(model: nn.Module) -> None:
    """Refuse a model that is a shape alone, or compiled code that cannot be looked into.

    Args:
        model: Any module.

    Raises:
        InputError: A tensor is on the meta device, or a part of the model is TorchScript.
    """
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            msg = (
                f"{name or 'model'!r}: expected a model in Python, got TorchScript. Use the model "
                "before it was scripted or traced, and load its state_dict() into it."
            )
            raise InputError(msg)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            msg = (
                f"{name!r}: expected numbers, got a tensor of the meta device, which has none. "
                "Call model.to_empty(device='cpu') and load a checkpoint into the model first."
            )
            raise InputError(msg)

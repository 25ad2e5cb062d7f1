"""A PyTorch model as one side of a conversion."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from bnkit.conversion.gather import Side
from bnkit.conversion.layer import Kind, Layer
from bnkit.conversion.worlds import WORLDS
from bnkit.core import TORCH, BatchNormSpec, InputError

_ROLES = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "num_batches_tracked": "count",
}
_STATISTICS = ("running_mean", "running_var")


def module_side(model: nn.Module) -> Side:
    """The layers of a model in the order in which they are registered.

    Args:
        model: In memory, not lazy.

    Returns:
        Its layers, with the names of its state_dict.

    Raises:
        InputError: A tensor is not there yet.
    """
    tensors = _tensors(model)
    layers = [_layer(name, module) for name, module in model.named_modules()]
    return Side(
        title=type(model).__name__,
        world=WORLDS["torch"],
        layers=tuple(x for x in layers if x is not None),
        ordered=True,
        read=lambda name: to_numpy(tensors[name]),
        dtypes={n: str(t.dtype).removeprefix("torch.") for n, t in tensors.items()},
    )


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor on the host; bfloat16 as float32, which holds all of its values."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module has the statistics of a batch norm, kept or not."""
    if isinstance(module, _InstanceNorm):
        return False
    return all(n in module._buffers for n in _STATISTICS)


def module_spec(module: Any) -> BatchNormSpec:
    """What a batch norm layer of a PyTorch model computes.

    Args:
        module: A layer of torch, of bnkit, or of another library with torch's attributes.

    Returns:
        PyTorch's specification with the arguments of the layer.
    """
    ghost, renorm = getattr(module, "ghost", None), getattr(module, "renorm", None)
    found = replace(
        TORCH,
        eps=getattr(module, "eps", TORCH.eps),
        ema_weight=getattr(module, "momentum", TORCH.ema_weight),
        running_correction=0 if getattr(module, "running_correction", 1) == 0 else 1,
    )
    if ghost is not None:
        found = replace(
            found,
            virtual_batch_size=ghost.virtual_batch_size,
            ghost_groups=ghost.groups,
            ghost_running=ghost.running,
        )
    if renorm is not None:
        tracked = "stddev" if renorm.rule == "plain" else "variance"
        found = replace(found, train_statistics="renorm", tracked_second_moment=tracked)
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        for leaf, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is None:
                continue
            full = f"{name}.{leaf}".lstrip(".")
            if is_lazy(tensor) or tensor.device.type == "meta":
                msg = (
                    f"{full!r} ({type(model).__name__}): expected a tensor in memory, got a lazy "
                    "one or one on the device 'meta'. Run one batch through the model first."
                )
                raise InputError(msg)
            found[full] = tensor
    return found


def _layer(name: str, module: nn.Module) -> Layer | None:
    unsaved = module._non_persistent_buffers_set
    own = {**module._parameters, **module._buffers}
    own = {n: t for n, t in own.items() if t is not None and n not in unsaved}
    norm = is_batch_norm(module)
    if not own and not norm:
        return None
    roles = _ROLES if norm else dict.fromkeys(own, "")
    own = {roles[n] or n: n for n in own if n in roles}
    named = {role: f"{name}.{leaf}".lstrip(".") for role, leaf in own.items()}
    sizes = {r: tuple(getattr(module, leaf).shape) for r, leaf in own.items()}
    facts = {"spec": module_spec(module), "class": type(module).__name__} if norm else {}
    return Layer(name=name, kinds=_kinds(module, sizes), tensors=named, shapes=sizes, facts=facts)


def _kinds(module: nn.Module, sizes: dict[str, tuple[int, ...]]) -> tuple[Kind, ...]:
    if is_batch_norm(module):
        return ("batch_norm",)
    if "weight" not in sizes:
        return ("other",)
    if isinstance(module, _ConvTransposeNd):
        return ("conv_transpose",)
    if isinstance(module, _ConvNd):
        deep = module.groups == module.in_channels > 1
        return ("depthwise", "conv") if deep else ("conv",)
    if isinstance(module, nn.Linear):
        return ("dense",)
    return ("other",)

"""A plan carried out on a copy of the model that it was made for."""

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

from bnkit.core import Affine, FoldError, InputError, fold_left, fold_right, rounded
from bnkit.fold.layers import Map, read_map
from bnkit.fold.modules import ChannelPad, Folded, FoldedAct, ScaleShift
from bnkit.fold.planning import Decision, Plan, Side
from bnkit.ops import IDENTITY


def carry_out(model: nn.Module, plan: Plan) -> nn.Module:
    """Fold a model in place.

    All new tensors are computed before the first is put in place.

    Args:
        model: The model, or an exact copy of it.
        plan: What to do.

    Returns:
        The model; another module where the model itself was a batch norm.
    """
    maps = {name: _read(model, name) for name in plan.writes}
    tensors = {name: _new_tensors(maps[name], writes) for name, writes in plan.writes.items()}
    modules = {d.name: _replacement(model.get_submodule(d.name), d)
               for d in plan.decisions if d.action in ("folded", "scale_shift")}  # fmt: skip
    for name, (weight, bias) in tensors.items():
        _put(maps[name].module, weight, bias)
    for name in plan.unpadded:
        _without_padding(model.get_submodule(name))
    for name, module in modules.items():
        if not name:
            return module
        exchange(model, name, module)
    return model


def exchange(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, under every name that this one has.

    Args:
        model: The model.
        name: One of the names of the old module.
        module: The new one.
    """
    old = model.get_submodule(name)
    for parent in list(model.modules()):  # the new module may hold the old one
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = module


def _read(model: nn.Module, name: str) -> Map:
    found = read_map(name, model.get_submodule(name))
    if not isinstance(found, Map):
        msg = f"{name!r}: expected the layer that the plan was made for, got another: {found}"
        raise FoldError(msg)
    return found


def _new_tensors(one: Map, writes: list[tuple[Side, Affine]]) -> tuple[Tensor, Tensor]:
    module = one.module
    weight = module.weight.detach().to("cpu", torch.float64)
    bias = None if module.bias is None else module.bias.detach().to("cpu", torch.float64)
    for side, affine in writes:
        fold = fold_left if side == "left" else fold_right
        weight, bias = fold(xp, weight, bias, affine, one.layout)
    assert_bias: Any = bias
    try:
        dtype = module.weight.dtype
        kept = dtype if module.bias is None else module.bias.dtype
        return rounded(xp, weight, dtype), rounded(xp, assert_bias, kept)
    except InputError as error:
        msg = f"{one}: {error}. Fold in a wider dtype, or leave this layer alone."
        raise FoldError(msg) from error


def _put(module: Any, weight: Tensor, bias: Tensor) -> None:
    """The numbers go into the tensors that are there, so that layout, device and users stay."""
    with torch.no_grad():
        module.weight.copy_(weight)
        if module.bias is not None:
            module.bias.copy_(bias)
            return
    bias = bias.to(module.weight.device)
    module.bias = nn.Parameter(bias, requires_grad=module.weight.requires_grad)


def _without_padding(conv: Any) -> None:
    conv.padding = (0,) * len(conv.kernel_size)
    conv._reversed_padding_repeated_twice = [0, 0] * len(conv.kernel_size)


def _replacement(module: Any, decision: Decision) -> nn.Module:
    norm = decision.norm
    act = IDENTITY if norm is None else norm.act
    if decision.action == "scale_shift":
        new: nn.Module = _scale_shift(module, decision)
    elif decision.pad is not None:
        values, widths = decision.pad
        new = ChannelPad(_like(module.running_mean, values), widths)
    elif hasattr(module, "act"):
        new = FoldedAct(decision.ndim, act)
    else:
        new = Folded(decision.ndim)
    # as the other modules of the model: .eval() may be overridden
    for part in new.modules():
        part.training = module.training
    return new


def _scale_shift(module: Any, decision: Decision) -> ScaleShift:
    norm, affine = decision.norm, decision.affine
    if norm is None or affine is None:
        msg = f"{decision.name!r}: expected a batch norm that was read, got none"
        raise FoldError(msg)
    weight = module.weight if module.weight is not None else module.running_mean
    scale, shift = (_like(weight, v) for v in affine)
    return ScaleShift(scale, shift, norm.axis, norm.ndim, norm.act)


def _like(tensor: Tensor, values: Any) -> Tensor:
    return rounded(xp, values, tensor.dtype).to(tensor.device)

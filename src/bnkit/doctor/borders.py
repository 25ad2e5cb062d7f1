"""What folding a batch norm into the zero-padded convolution behind it would cost at the border."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bnkit.doctor.flow import Flow, Node

_FOLDABLE = {"conv", "linear"}


def border_errors(model: nn.Module, flow: Flow) -> dict[str, float]:
    """A bound of the error of folding, for every batch norm that has nowhere else to go.

    At output channel o it is `sum over i of |shift_i| * (sum over taps of |weight_oi|)`, where only
    taps are summed that can lie outside of the image.

    Args:
        model: The model, in whose names the flow is.
        flow: Which operation feeds which.

    Returns:
        The largest bound over channels, by name of the batch norm.
    """
    modules = dict(model.named_modules())
    found = {}
    for node in flow.batch_norms():
        before = flow.before(node)
        behind = [modules.get(n.layer) for n in flow.consumers(node)]
        convolutions = [m for m in behind if _pads(m)]
        alone = before is None or not _takes(flow, before)
        shift = _shift(modules.get(node.layer))
        if alone and convolutions and shift is not None and len(convolutions) == len(behind):
            found[node.layer] = max(_bound(c, shift) for c in convolutions)
    return found


def _takes(flow: Flow, before: Node) -> bool:
    """Whether the batch norm can be folded into the layer before it."""
    return before.kind in _FOLDABLE and len(flow.consumers(before)) == 1


def _pads(module: Any) -> TypeGuard[_ConvNd]:
    if not isinstance(module, _ConvNd) or module.transposed or module.padding_mode != "zeros":
        return False
    return module.padding != "valid" and (module.padding == "same" or any(module.padding))


def _shift(layer: Any) -> Tensor | None:
    if getattr(layer, "running_mean", None) is None or layer.running_var.ndim != 1:
        return None
    mean, var = layer.running_mean.double(), layer.running_var.double()
    # a frozen layer of another library may have no eps, and no weight
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    scale = (var + getattr(layer, "eps", 0.0)).rsqrt()
    scale = scale if weight is None else scale * weight.detach().double()
    shift = -mean * scale if bias is None else bias.detach().double() - mean * scale
    return shift if bool(shift.isfinite().all()) else None


def _bound(convolution: _ConvNd, shift: Tensor) -> float:
    weight = convolution.weight.detach().double().abs()
    outside = torch.ones(weight.shape[2:], dtype=torch.bool, device=weight.device)
    inside: list[slice] = []
    for size, taps_outside in zip(weight.shape[2:], _reach(convolution), strict=True):
        reach = min(taps_outside, size)
        inside.append(slice(reach, size - reach) if size > 2 * reach else slice(0, 0))
    outside[tuple(inside)] = False
    taps = (weight * outside).flatten(2).sum(2)
    groups = convolution.groups
    by_group = taps.unflatten(0, (groups, -1)) * shift.abs().unflatten(0, (groups, 1, -1))
    return float(by_group.sum(2).max())


def _reach(convolution: _ConvNd) -> list[int]:
    """How many taps from an end of the kernel can lie in the padding, by axis."""
    if isinstance(convolution.padding, str):
        return [k // 2 for k in convolution.kernel_size]
    steps = zip(convolution.padding, convolution.dilation, strict=True)
    return [-(-int(pad) // d) for pad, d in steps]

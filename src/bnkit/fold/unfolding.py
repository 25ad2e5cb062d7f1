"""The way back: batch norms to train on, in a model that was folded."""

import copy
from typing import TYPE_CHECKING, Any

import array_api_compat.torch as xp
import torch
from torch import nn

from bnkit.core import FoldError, equivalent_state
from bnkit.fold.modules import ChannelPad
from bnkit.fold.writing import exchange

if TYPE_CHECKING:
    from bnkit.fold.result import Folding, FoldRecord


def unfold(folding: "Folding") -> nn.Module:
    """Give a folded model its batch norms back, for fine-tuning.

    The layers keep the weights they have now, folded and maybe trained since. Each batch norm
    gets the statistics of what it is now given: behind a folded layer that is the output of the
    old batch norm, with mean `bias` and variance `weight**2 var / (var + eps)`. Its weight is the
    root of that variance plus eps and its bias that mean, so that inference stays the same, and
    training normalizes as before. One that was folded into the layer behind it gets the statistics
    of its old input in the same way. Without a weight of its own it cannot undo the
    normalization, and gets mean 0 (or its bias) and variance `1 - eps`.

    A batch norm that another one took over comes back only if that one was left as scale and
    shift; of several that went into the same layer, the last one comes back.

    Args:
        folding: What `bnkit.fold` returned.

    Returns:
        A new model in eval mode; call `.train()` to train it.

    Raises:
        FoldError: Not a `Folding`.

    Example:
        >>> import torch, bnkit
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
        >>> x = torch.randn(2, 3, 8, 8)
        >>> model = bnkit.fold(net, x).unfold()
        >>> type(model[1]).__name__, torch.allclose(model(x), net(x), atol=1e-5)
        ('BatchNorm2d', True)
    """
    if not hasattr(folding, "_norms"):
        msg = f"unfold: expected what bnkit.fold returned, got {type(folding).__name__}."
        raise FoldError(msg)
    model = copy.deepcopy(folding.model)
    actions = {r.name: r for r in folding.records}
    for record in folding.records:
        if record.name not in folding._norms:
            continue
        new = _restored(folding._norms[record.name], record, actions)
        if new is None:
            continue
        old = model.get_submodule(record.name)
        for part in new.modules():
            part.training = old.training
        if isinstance(old, ChannelPad):
            new = nn.Sequential(new, old)
            new.training = old.training
        if not record.name:
            return new
        exchange(model, record.name, new)
    return model


def _restored(
    norm: Any, record: "FoldRecord", actions: "dict[str, FoldRecord]"
) -> nn.Module | None:
    if record.action == "scale_shift":
        return copy.deepcopy(norm)
    if record.side == "norm":
        kept = actions[record.into[0]].action == "scale_shift"
        return copy.deepcopy(norm) if kept else None
    new = copy.deepcopy(norm)
    statistics = (_host(norm.running_mean), _host(norm.running_var))
    if norm.weight is None:
        mean = torch.zeros_like(statistics[0]) if norm.bias is None else _host(norm.bias)
        _put(new, running_mean=mean, running_var=torch.full_like(mean, 1 - norm.eps))
        return new
    if record.side == "right":
        mean, var = statistics
        weight = torch.sqrt(var + norm.eps)
        _put(new, running_mean=mean, running_var=var, weight=weight, bias=mean)
        if norm.bias is None:
            _put(new, running_mean=torch.zeros_like(mean))
        return new
    bias = None if norm.bias is None else _host(norm.bias)
    state = equivalent_state(xp, statistics, _host(norm.weight), bias, norm.eps)
    _put(new, **state._asdict())
    return new


def _put(layer: Any, **values: Any) -> None:
    with torch.no_grad():
        for name, value in values.items():
            tensor = getattr(layer, name)
            if tensor is not None:
                tensor.copy_(value)


def _host(tensor: Any) -> Any:
    return tensor.detach().to("cpu", torch.float64)

"""The buffers of batch renormalization on a module, for any layer that has running statistics."""

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

from bnkit.core import RenormRule, initial_renorm
from bnkit.ops import RenormBuffers

_NAMES = {
    "plain": ("renorm_mean", "renorm_stddev", "running_stddev"),
    "debiased": ("renorm_mean", "renorm_stddev", "renorm_weight"),
}


def renorm_names(rule: RenormRule) -> tuple[str, ...]:
    """The buffers that a rule adds."""
    return _NAMES[rule]


def add_renorm_buffers(layer: nn.Module, like: Tensor, rule: RenormRule) -> None:
    """Register the buffers of a rule; `like` has the shape, dtype and device of the statistics."""
    first = _initial(like.real if like.is_complex() else like, rule)
    for name in renorm_names(rule):
        layer.register_buffer(name, first[name])


def reset_renorm_buffers(layer: Any) -> None:
    """Set the buffers to their values before the first batch, from the running variance."""
    rule = layer.renorm.rule
    for name, value in _initial(layer.renorm_mean, rule).items():
        stddev = rule == "plain" and name != "renorm_mean"
        getattr(layer, name).copy_(torch.sqrt(layer.running_var) if stddev else value)


def flat_buffers(buffers: RenormBuffers) -> RenormBuffers:
    """The same memory, one dimension per statistic."""
    flat = (b if b is None or b.ndim < 2 else b.flatten() for b in buffers)
    return RenormBuffers(*flat)  # pyright: ignore[reportArgumentType]


def renorm_buffers(layer: Any, nonfinite_batches: Tensor | None) -> RenormBuffers:
    """What a training step reads and changes."""
    return RenormBuffers(
        layer.running_mean,
        layer.running_var,
        layer.renorm_mean,
        layer.renorm_stddev,
        getattr(layer, "running_stddev", None),
        getattr(layer, "renorm_weight", None),
        layer.num_batches_tracked,
        nonfinite_batches,
    )


def seed_renorm_buffers(layer: Any, *loading: Any) -> None:
    """After loading a plain batch norm: the reference starts at its running statistics.

    Args:
        layer: A layer with the buffers of a rule.
        *loading: The arguments of `_load_from_state_dict`.
    """
    state_dict, prefix, _, _, missing = loading[:5]
    names = renorm_names(layer.renorm.rule)
    keys = [prefix + name for name in names]
    if any(key in state_dict for key in keys) or prefix + "running_mean" not in state_dict:
        return
    start_from_running(layer)
    missing[:] = [key for key in missing if key not in keys]


def start_from_running(layer: Any) -> None:
    """Set the reference to the running statistics, as if it had always been kept."""
    with torch.no_grad():
        stddev = torch.sqrt(layer.running_var + layer.eps)
        for name in renorm_names(layer.renorm.rule):
            buffer = getattr(layer, name)
            if name == "renorm_mean":
                buffer.copy_(layer.running_mean)
            else:
                buffer.copy_(stddev if name != "renorm_weight" else torch.ones_like(buffer))


def _initial(like: Tensor, rule: RenormRule) -> dict[str, Tensor]:
    stats = initial_renorm(xp, like, rule)
    values = {
        "renorm_mean": stats.mean,
        "renorm_stddev": stats.stddev,
        "running_stddev": stats.running_stddev,
        "renorm_weight": stats.weight,
    }
    return {name: values[name].clone() for name in renorm_names(rule)}

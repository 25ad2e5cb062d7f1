"""Read the facts of a module; what needs trying is tried on a copy."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnkit.doctor.facts import ModelFacts, OptimizerFacts
from bnkit.doctor.find import batch_norms, hidden_batch_norms
from bnkit.doctor.record import BatchNormRecord

_PARALLEL = ("DistributedDataParallel", "DataParallel")
_PRIVATE = ("opacus.",)
_QAT = ("torch.ao.nn.intrinsic.qat", "torch.nn.intrinsic.qat")


def read_facts(
    model: nn.Module, copy: nn.Module, records: tuple[BatchNormRecord, ...]
) -> ModelFacts:
    """Facts of a module.

    Args:
        model: The module; it is only read.
        copy: A copy of it, whose mode may be changed; it comes out in eval mode.
        records: What was read of its batch norms.

    Returns:
        The facts.
    """
    wrapper = next((m for m in model.modules() if type(m).__name__ in _PARALLEL), None)
    averaged = type(model).__name__ == "AveragedModel"
    return ModelFacts(
        training=model.training,
        weights_trained=_trained(records),
        thawed=_thawed(model, copy),
        hidden=hidden_batch_norms(model),
        frozen_parts=_frozen_parts(model),
        parallel=None if wrapper is None else type(wrapper).__name__,
        broadcasts=_broadcasts(wrapper),
        averaged=averaged,
        averaged_steps=int(getattr(model, "n_averaged", 0)) if averaged else 0,
        quantization_aware=_quantization_aware(model),
        observing=_observing(model),
        per_sample_gradients=type(model).__module__.startswith(_PRIVATE),
    )


def built_in_forward(run: Callable[[], Any]) -> tuple[str, ...]:
    """Classes of batch norms that are constructed while the model runs.

    Args:
        run: Runs it once.

    Returns:
        Names of the classes.
    """
    built = []
    original = _BatchNorm.__init__

    @wraps(original)
    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        built.append(type(self).__name__)
        original(self, *args, **kwargs)

    _BatchNorm.__init__ = watched
    try:
        with torch.no_grad():
            run()
    finally:
        _BatchNorm.__init__ = original
    return tuple(dict.fromkeys(built))


def read_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerFacts:
    """What an optimizer does to the weight and bias of each batch norm.

    Args:
        model: The module.
        optimizer: Its optimizer.

    Returns:
        The facts.
    """
    decay = {
        id(p): float(group.get("weight_decay", 0.0))
        for group in optimizer.param_groups
        for p in group["params"]
    }
    decayed, absent = {}, []
    for name, layer in batch_norms(model).items():
        own: list[Any] = [p for p in (layer.weight, layer.bias) if isinstance(p, nn.Parameter)]
        trainable = [p for p in own if p.requires_grad]
        if any(id(p) not in decay for p in trainable):
            absent.append(name)
        most = max((decay.get(id(p), 0.0) for p in trainable), default=0.0)
        if most > 0:
            decayed[name] = most
    weights = {n: m._parameters.get("weight") for n, m in model.named_modules()}
    return OptimizerFacts(
        decayed=decayed,
        absent=tuple(absent),
        weight_decay={n: decay[id(w)] for n, w in weights.items() if id(w) in decay},
        private=type(optimizer).__module__.startswith(_PRIVATE),
    )


def _broadcasts(wrapper: Any) -> bool | None:
    # torch 2.13 calls it forward_sync_buffers, and warns of the old name
    old = "broadcast_buffers"
    return getattr(
        wrapper, "forward_sync_buffers", None if wrapper is None else vars(wrapper).get(old)
    )


def _trained(records: tuple[BatchNormRecord, ...]) -> bool | None:
    """Whether anything moved: the parameters of a batch norm, or the statistics of one."""
    if any(not r.affine_at_init for r in records):
        return True
    if any(r.has_statistics and not r.at_init for r in records):
        return True
    return False if records else None


def _thawed(model: nn.Module, copy: nn.Module) -> tuple[str, ...]:
    frozen = [n for n, layer in batch_norms(model).items() if not layer.training]
    if not frozen or not model.training:
        return ()
    modes = {n: m.training for n, m in copy.named_modules()}
    try:
        copy.train()
        layers = batch_norms(copy)
        return tuple(n for n in frozen if layers[n].training)
    finally:
        for name, module in copy.named_modules():
            module.training = modes[name]


def _frozen_parts(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The largest submodules without a trainable parameter that hold a batch norm in train mode."""
    found: dict[str, tuple[str, ...]] = {}
    for name, module in model.named_modules():
        if not name or any(name.startswith(f"{f}.") for f in found):
            continue
        parameters = list(module.parameters())
        live = [
            f"{name}.{n}" if n else name
            for n, layer in batch_norms(module).items()
            if layer.training and getattr(layer, "track_running_stats", False)
        ]
        whole = len(list(module.children())) > 0
        if whole and parameters and live and not any(p.requires_grad for p in parameters):
            found[name] = tuple(live)
    return found


def _quantization_aware(model: nn.Module) -> tuple[str, ...]:
    parents = [n for n, m in model.named_modules() if type(m).__module__.startswith(_QAT)]
    layers = batch_norms(model)
    return tuple(n for n in layers if any(n.startswith(f"{p}.") for p in parents))


def _observing(model: nn.Module) -> bool | None:
    switches: list[Any] = [getattr(m, "observer_enabled", None) for m in model.modules()]
    known = [bool(switch.any()) for switch in switches if isinstance(switch, torch.Tensor)]
    return any(known) if known else None

"""Turning the batch norms of a model into ours, in place, and back."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm

from bnkit.core import ConversionError, InputError
from bnkit.nn.checks import check_policy
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.layers.batch_norm_act import BatchNormAct2d
from bnkit.nn.layers.domains import DomainBatchNorm
from bnkit.nn.layers.lazy import LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from bnkit.nn.layers.sync import SyncBatchNorm
from bnkit.nn.layers.variant import Variant
from bnkit.nn.naming import check_model
from bnkit.nn.replacing.exchange import (
    Exchange,
    Norm,
    Tail,
    exchange,
    is_exchanged,
    refusal,
    take_back,
)
from bnkit.nn.statistics.statistics_policy import DEFAULT, WithPolicy
from bnkit.ops import NonFinitePolicy

_TWINS: dict[type, type] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.LazyBatchNorm1d: LazyBatchNorm1d,
    nn.LazyBatchNorm2d: LazyBatchNorm2d,
    nn.LazyBatchNorm3d: LazyBatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}
_ORIGINALS = {ours: theirs for theirs, ours in _TWINS.items()}
_ADDED = (
    *("on_nonfinite", "_reported", "_narrow", "nonfinite_batches"),
    *("_part", "_converted", "_options"),
)
_PROBE_SPATIAL = {BatchNorm1d: (5,), BatchNorm2d: (3, 4), BatchNorm3d: (2, 3, 2)}


@dataclass(frozen=True, slots=True)
class Replacement:
    """What `replace_` or `restore_` did.

    Attributes:
        replaced: Names of the layers that changed class.
        kept: Names of the batch norms that were left as they are, with the reason.
    """

    replaced: tuple[str, ...]
    kept: dict[str, str]


def replace_(
    model: nn.Module,
    *,
    to: Literal["bnkit", "batch"] | Norm = "bnkit",
    num_groups: int = 32,
    strict: bool = True,
    on_nonfinite: NonFinitePolicy = "skip",
) -> Replacement:
    """Turn every batch norm of a model into bnkit's, or into another normalization, in place.

    Each layer stays the same object: parameters, buffers, hooks, dtype, device, mode and every
    reference to it (optimizers, tied layers) are untouched; only its class changes. Statistics
    in 16 bits are the one exception: they are widened to float32.

    A subclass that inherits its forward pass is given ours. One with a forward pass of its own
    is accepted only if it is batch norm followed by its `drop` and `act` modules, as in timm,
    and gives the same numbers on a probe in both modes; its other methods stay.

    `"group"`, `"layer"` and `"instance"` are there for comparison: torch's group norm with the
    learned weight and bias, whose state_dict is a group norm's. Layer norm is one group and
    instance norm one per channel (Wu & He 2018, section 3). Statistics are kept aside; `"batch"`
    is the way back, with the weight and bias of then and the statistics of before.

    Args:
        model: Any module, also a batch norm itself.
        to: `"bnkit"`: torch's batch norms become bnkit's. `"group"`, `"layer"`, `"instance"`:
            torch's and bnkit's become that. `"batch"`: those become what they were.
        num_groups: The most groups of `"group"`; the largest divisor of the channels that leaves
            two channels to a group is taken.
        strict: Refuse the whole model if one batch norm cannot be replaced; otherwise leave
            such layers alone and name them in the result.
        on_nonfinite: What layers that become bnkit's do with NaN and infinity.

    Returns:
        The names replaced and kept.

    Raises:
        InputError: An unknown `on_nonfinite` or `to`, or fewer than one group.
        ConversionError: With `strict`, a layer that cannot be replaced without losing behaviour;
            nothing has been changed then.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> bnkit.nn.replace_(model).replaced
        ('1',)
        >>> type(model[1]) is bnkit.nn.BatchNorm2d
        True
        >>> _ = bnkit.nn.replace_(model, to="group", num_groups=4)
        >>> isinstance(model[1], torch.nn.GroupNorm), model[1].num_groups
        (True, 4)
        >>> _ = bnkit.nn.replace_(model, to="batch")
        >>> bnkit.nn.restore_(model).replaced, type(model[1]) is torch.nn.BatchNorm2d
        (('1',), True)
    """
    check_model("replace_", model)
    check_policy(lambda: "replace_", on_nonfinite)
    if to == "bnkit":
        return _to_bnkit(model, on_nonfinite, strict=strict)
    if to == "batch":
        return Replacement(_take_back(model), {})
    if to not in ("group", "layer", "instance"):
        words = "'bnkit', 'batch', 'group', 'layer' or 'instance'"
        msg = f"replace_: to must be {words}, got {to!r}."
        raise InputError(msg)
    if not (isinstance(num_groups, int) and num_groups >= 1):
        msg = f"replace_: num_groups must be an integer of at least 1, got {num_groups!r}."
        raise InputError(msg)
    return _exchange(model, Exchange(to, num_groups), strict=strict)


def restore_(model: nn.Module) -> Replacement:
    """Turn bnkit's batch norms back into the classes they had, or into torch's.

    The inverse of `replace_`: the same objects, parameters and buffers; statistics that were
    stored in 16 bits are stored so again, rounded once. Layers that were exchanged for another
    normalization go all the way back, and so do ghost batch norms and batch renormalizations;
    layers that were synchronized are not any more.

    Args:
        model: Any module.

    Returns:
        The names restored, and those of layers that torch does not have, with the reason.

    Raises:
        ConversionError: A layer is frozen or has a statistics policy of its own, which torch's
            layers cannot have; nothing has been changed then.
    """
    check_model("restore_", model)
    held = [
        f"{name!r} ({type(m).__name__})"
        for name, m in model.named_modules()
        if isinstance(m, WithPolicy) and m.statistics_policy != DEFAULT
    ]
    if held:
        msg = (
            f"restore_: expected layers without a statistics policy of their own, got "
            f"{', '.join(held)}. Nothing was changed. Call bnkit.nn.unfreeze_(model), or "
            "set_policy_(model, update='forward', recompute='skip')."
        )
        raise ConversionError(msg)
    _take_back(model)
    restored, kept = [], {}
    found: dict[str, Any] = dict(model.named_modules())
    for name, layer in found.items():
        if isinstance(layer, Variant):
            layer._become_plain()
        cls = type(layer)
        original = getattr(cls, "_bnkit_original", None) or _ORIGINALS.get(cls)
        if original is None:
            if isinstance(layer, (WithPolicy, DomainBatchNorm)):
                kept[name] = _not_in_torch(layer)
            continue
        for buffer, dtype in layer.__dict__.get("_narrow", {}).items():
            stored = layer.get_buffer(buffer)
            layer._buffers[buffer] = stored.to(dtype)
        if original is nn.SyncBatchNorm:
            layer.process_group = layer._part.process_group  # pyright: ignore
        for attribute in _ADDED:
            layer.__dict__.pop(attribute, None)
        layer.__class__ = original  # pyright: ignore[reportAttributeAccessIssue]
        restored.append(name)
    return Replacement(tuple(restored), kept)


def _not_in_torch(layer: Any) -> str:
    cls = type(layer).__name__
    if isinstance(layer, DomainBatchNorm):
        return f"{cls} is no layer of torch; keep_domain_ puts the batch norm of one in its place"
    if cls.startswith("Lazy"):
        return f"{cls} is no layer of torch; its first batch makes it {cls.removeprefix('Lazy')}"
    if hasattr(layer, "plain"):
        return f"{cls} is no layer of torch; put layer.plain(ndim) in its place"
    return f"{cls} is no layer of torch"


def _to_bnkit(model: nn.Module, on_nonfinite: NonFinitePolicy, *, strict: bool) -> Replacement:
    plan, kept = [], {}
    for name, layer in model.named_modules():
        if not isinstance(layer, _TorchBatchNorm) or isinstance(layer, BatchNormBase):
            continue
        target = _target(layer)
        if isinstance(target, str):
            kept[name] = target
        else:
            plan.append((name, layer, target))
    _refuse(kept, strict=strict)
    for _, layer, target in plan:
        _become(layer, target, on_nonfinite)
    return Replacement(tuple(name for name, _, _ in plan), kept)


def _exchange(model: nn.Module, wanted: Exchange, *, strict: bool) -> Replacement:
    plan, kept = [], {}
    for name, layer in model.named_modules():
        if isinstance(layer, _TorchBatchNorm):
            reason = refusal(layer, _tail)
            if reason is not None:
                kept[name] = reason
                continue
        elif isinstance(layer, WithPolicy):
            kept[name] = f"{type(layer).__name__} {layer.not_exchanged}"
            continue
        elif not is_exchanged(layer):
            continue
        plan.append((name, layer))
    _refuse(kept, strict=strict)
    for _, layer in plan:
        if is_exchanged(layer):
            take_back(layer)
        tail = _tail(layer)
        if tail is not None:
            exchange(layer, wanted, tail)
    return Replacement(tuple(name for name, _ in plan), kept)


def _take_back(model: nn.Module) -> tuple[str, ...]:
    layers = {name: m for name, m in model.named_modules() if is_exchanged(m)}
    for layer in layers.values():
        take_back(layer)
    return tuple(layers)


def _refuse(kept: dict[str, str], *, strict: bool) -> None:
    if kept and strict:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in kept.items())
        msg = (
            f"replace_: expected batch norms that can be replaced without losing behaviour, got "
            f"{reasons}. Nothing was changed. Pass strict=False to leave these layers as they are."
        )
        raise ConversionError(msg)


def _tail(layer: Any) -> Tail | None:
    """What follows the normalization of a batch norm; None if its forward pass is another."""
    cls = type(layer)
    if not isinstance(layer, BatchNormBase):
        target = _target(layer)
        if isinstance(target, str) or target is SyncBatchNorm:
            return None
        return "drop_act" if issubclass(target, _Act) else "none"
    if cls._normalize is not BatchNormBase._normalize or layer._part is not None:
        return None
    tails: dict[Any, Tail] = {
        BatchNormBase.forward: "none",
        _Act.forward: "drop_act",
        BatchNormAct2d.forward: "residual_act",
    }
    return tails.get(cls.forward)


def _target(layer: _TorchBatchNorm) -> type | str:
    """The class the layer would get, or the reason why it cannot."""
    cls = type(layer)
    if cls in _TWINS:
        return _TWINS[cls]
    if hasattr(layer, "parametrizations"):
        return f"{cls.__name__} is parametrized; remove the parametrization first"
    base = next(
        (b for b in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) if issubclass(cls, b)), None
    )
    if base is None:
        return f"{cls.__name__} is no torch.nn.BatchNorm1d, 2d or 3d"
    ours = _TWINS[base]
    if cls.forward is base.forward and cls._check_input_dim is base._check_input_dim:
        return _mixed(cls, ours)
    if _ends_in_drop_and_act(layer):
        candidate = _mixed_act(cls, ours)
        return candidate if _same_numbers(layer, candidate) else _differs(cls)
    return _differs(cls)


def _differs(cls: type) -> str:
    return f"{cls.__name__} has a forward pass of its own"


def _become(layer: Any, target: type, on_nonfinite: NonFinitePolicy) -> None:
    narrow = {
        name: buffer.dtype
        for name, buffer in layer._buffers.items()
        if name in ("running_mean", "running_var") and _is_narrow(buffer)
    }
    layer.__class__ = target
    if isinstance(layer, BatchNormBase):
        layer._extend(on_nonfinite)
    else:
        layer.on_nonfinite = on_nonfinite
    if narrow:
        layer.__dict__["_narrow"] = narrow


def _is_narrow(buffer: Tensor | None) -> bool:
    return buffer is not None and buffer.dtype in (torch.float16, torch.bfloat16)


class _Mixed:
    """A subclass of torch's batch norm with our forward pass; pickles as its original class."""

    _bnkit_original: type
    _bnkit_ours: type

    def __reduce_ex__(self, protocol: Any) -> tuple:
        maker = _mixed_act if isinstance(self, _Act) else _mixed
        return _rebuild, (maker.__name__, self._bnkit_original, self._bnkit_ours), self.__dict__


class _Act:
    """Batch norm, then the `drop` and `act` modules of the layer."""

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))  # pyright: ignore


@cache
def _mixed(cls: type, ours: type) -> type:
    body = {"_bnkit_original": cls, "_bnkit_ours": ours, "__module__": cls.__module__}
    return type(cls.__name__, (_Mixed, ours, cls), body)


@cache
def _mixed_act(cls: type, ours: type) -> type:
    body = {"_bnkit_original": cls, "_bnkit_ours": ours, "__module__": cls.__module__}
    return type(cls.__name__, (_Mixed, _Act, ours, cls), body)


def _rebuild(maker: str, cls: type, ours: type) -> Any:
    target: Any = {"_mixed": _mixed, "_mixed_act": _mixed_act}[maker](cls, ours)
    return target.__new__(target)


def _ends_in_drop_and_act(layer: nn.Module) -> bool:
    return all(isinstance(getattr(layer, name, None), nn.Module) for name in ("drop", "act"))


def _same_numbers(layer: Any, candidate: type) -> bool:
    """Whether the candidate class computes what the layer does, on copies, in both modes."""
    spatial = _PROBE_SPATIAL[candidate._bnkit_ours]  # pyright: ignore[reportAttributeAccessIssue]
    like = layer.weight if layer.weight is not None else layer.running_mean
    if like is None or like.device.type == "meta":
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, layer.num_features, *spatial, generator=generator)
    for training in (True, False):
        theirs, ours = (_bare_copy(layer, training) for _ in range(2))
        _become(ours, candidate, "propagate")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expected = theirs(x.to(like.device, like.dtype))
            torch.manual_seed(0)
            got = ours(x.to(like.device, like.dtype))
        pairs = [(got, expected), *((ours._buffers[k], v) for k, v in theirs._buffers.items())]
        if not all(_close(a, b) for a, b in pairs):
            return False
    return True


def _bare_copy(layer: nn.Module, training: bool) -> Any:  # noqa: FBT001
    twin = copy.deepcopy(layer)
    for module in twin.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            getattr(module, hooks).clear()
    # not .train(): a subclass may refuse to change its mode, as frozen layers do
    for module in twin.modules():
        module.training = training
    return twin


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    tolerance = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float64: 1e-9}.get(b.dtype, 1e-4)
    return a.shape == b.shape and torch.allclose(
        a.to(torch.float64), b.to(torch.float64), rtol=tolerance, atol=tolerance
    )

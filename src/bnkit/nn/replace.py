"""Turning the batch norms of a model into ours, in place, and back."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm

from bnkit.core import ConversionError
from bnkit.nn.base import BatchNormBase
from bnkit.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.checks import check_policy
from bnkit.nn.lazy import LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from bnkit.nn.sync import SyncBatchNorm
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
_ADDED = ("on_nonfinite", "_reported", "_narrow", "nonfinite_batches", "_part", "_converted")
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
    model: nn.Module, *, strict: bool = True, on_nonfinite: NonFinitePolicy = "skip"
) -> Replacement:
    """Turn every torch batch norm of a model into bnkit's, in place.

    Each layer stays the same object: parameters, buffers, hooks, dtype, device, mode and every
    reference to it (optimizers, tied layers) are untouched; only its class changes. Statistics
    in 16 bits are the one exception: they are widened to float32.

    A subclass that inherits its forward pass is given ours. One with a forward pass of its own
    is accepted only if it is batch norm followed by its `drop` and `act` modules, as in timm,
    and gives the same numbers on a probe in both modes; its other methods stay.

    Args:
        model: Any module, also a batch norm itself.
        strict: Refuse the whole model if one batch norm cannot be replaced; otherwise leave
            such layers alone and name them in the result.
        on_nonfinite: What the new layers do with NaN and infinity.

    Returns:
        The names replaced and kept.

    Raises:
        InputError: An unknown `on_nonfinite`.
        ConversionError: With `strict`, a layer that cannot be replaced without losing behaviour;
            nothing has been changed then.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> bnkit.nn.replace_(model).replaced
        ('1',)
        >>> type(model[1]) is bnkit.nn.BatchNorm2d
        True
        >>> bnkit.nn.restore_(model).replaced, type(model[1]) is torch.nn.BatchNorm2d
        (('1',), True)
    """
    check_policy(lambda: "replace_", on_nonfinite)
    plan, kept = [], {}
    for name, layer in model.named_modules():
        if not isinstance(layer, _TorchBatchNorm) or isinstance(layer, BatchNormBase):
            continue
        target = _target(layer)
        if isinstance(target, str):
            kept[name] = target
        else:
            plan.append((name, layer, target))
    if kept and strict:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in kept.items())
        msg = (
            f"replace_: expected batch norms that can be replaced without losing behaviour, got "
            f"{reasons}. Nothing was changed. Pass strict=False to leave these layers as they are."
        )
        raise ConversionError(msg)
    for _, layer, target in plan:
        _become(layer, target, on_nonfinite)
    return Replacement(tuple(name for name, _, _ in plan), kept)


def restore_(model: nn.Module) -> Replacement:
    """Turn bnkit's batch norms back into the classes they had, or into torch's.

    The inverse of `replace_`: the same objects, parameters and buffers; statistics that were
    stored in 16 bits are stored so again, rounded once. Layers that were synchronized are not
    any more, as torch's are not.

    Args:
        model: Any module.

    Returns:
        The names restored; nothing is ever kept.
    """
    restored = []
    for name, layer in model.named_modules():
        cls = type(layer)
        original = getattr(cls, "_bnkit_original", None) or _ORIGINALS.get(cls)
        if original is None:
            continue
        for buffer, dtype in layer.__dict__.get("_narrow", {}).items():
            stored = layer.get_buffer(buffer)
            layer._buffers[buffer] = stored.to(dtype)
        if original is nn.SyncBatchNorm:
            layer.process_group = layer._part.process_group  # pyright: ignore
        for attribute in _ADDED:
            layer.__dict__.pop(attribute, None)
        layer.__class__ = original
        restored.append(name)
    return Replacement(tuple(restored), {})


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

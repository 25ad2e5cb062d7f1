"""Batch norms turned into group, layer or instance norms that keep the weights, and back."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm

from bnkit.core import InputError
from bnkit.nn.naming import qualified_name
from bnkit.nn.statistics.statistics_policy import DEFAULT, WithPolicy
from bnkit.ops import Activation

Norm = Literal["group", "layer", "instance"]
# what follows the normalization: nothing, the modules `drop` and `act`, or a sum and `act`
Tail = Literal["none", "drop_act", "residual_act"]
_STASH = "_batch_norm"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# instance attributes that a group norm has no use for
_OF_BATCH_NORM = (
    "momentum",
    "track_running_stats",
    "on_nonfinite",
    "nonfinite_batches",
    "_reported",
    "_narrow",
)


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` that refuses one value per group, whose output would be the bias."""

    def forward(self, input: Tensor) -> Tensor:
        """As in torch."""
        if input.shape[1:].numel() <= self.num_groups and input.shape[0] > 1:
            msg = (
                f"{qualified_name(self)}: expected more than 1 value in each of the "
                f"{self.num_groups} group(s), got input of shape {tuple(input.shape)}: the "
                "variance is 0, so that the output would be the bias. Use fewer groups, "
                "replace_(..., to='layer') or num_groups=."
            )
            raise InputError(msg)
        return super().forward(input)


class Exchange(NamedTuple):
    """What a batch norm is turned into.

    Attributes:
        norm: Which normalization.
        num_groups: The most groups of `"group"`.
    """

    norm: Norm
    num_groups: int

    def groups(self, channels: int) -> int:
        """Groups of that many channels.

        `"layer"` has 1, `"instance"` one per channel; `"group"` the largest divisor of the
        channels that is at most `num_groups` and leaves at least two channels to a group.

        Args:
            channels: Number of channels.

        Returns:
            A divisor of the channels.
        """
        if self.norm == "layer":
            return 1
        if self.norm == "instance":
            return channels
        most = max(1, min(self.num_groups, channels // 2))
        return next(g for g in range(most, 0, -1) if channels % g == 0)


class _Stash(NamedTuple):
    """What the way back needs; beside the buffers, so that the state_dict is a group norm's."""

    recipe: Any
    attributes: dict[str, Any]
    buffers: dict[str, Tensor | None]


def is_exchanged(layer: nn.Module) -> bool:
    """Whether a layer was a batch norm before `exchange`.

    Args:
        layer: Any module.

    Returns:
        Whether there is a way back.
    """
    return _STASH in layer.__dict__


def refusal(layer: _TorchBatchNorm, tail: Callable[[Any], Tail | None]) -> str | None:
    """Why a batch norm cannot be exchanged without losing behaviour, or None.

    Args:
        layer: Torch's or bnkit's.
        tail: Tells what follows the normalization of a layer; None = something else.

    Returns:
        The reason.
    """
    cls = type(layer)
    if any(nn.parameter.is_lazy(p) for p in (*layer.parameters(), *layer.buffers())):
        return f"{cls.__name__} has not seen its first input"
    if isinstance(layer, WithPolicy) and layer.statistics_policy != DEFAULT:
        return "it is frozen or has a statistics policy of its own, which would be lost"
    if hasattr(layer, "parametrizations"):
        return f"{cls.__name__} is parametrized; remove the parametrization first"
    if getattr(layer, "_part", None) is not None:
        return f"it is {layer._part}; call revert_sync_batchnorm, or leave the context"
    if tail(layer) is None:
        return f"{cls.__name__} has a forward pass of its own"
    method = next((n for n, v in _own(cls).items() if _calls_super(v)), None)
    return method and f"{cls.__name__}.{method} calls super() of batch norm"


def exchange(layer: Any, wanted: Exchange, tail: Tail) -> None:
    """Turn a batch norm into another normalization, the same object with the same parameters.

    Args:
        layer: A batch norm that is not refused.
        wanted: Into what.
        tail: What follows its normalization.
    """
    buffers = {k: layer._buffers.pop(k) for k in _STATISTICS if k in layer._buffers}
    attributes = {k: layer.__dict__.pop(k) for k in _OF_BATCH_NORM if k in layer.__dict__}
    layer.__dict__[_STASH] = _Stash(_recipe(layer), attributes, buffers)
    layer.__class__ = _class_of(type(layer), tail)
    layer.num_channels = layer.num_features
    layer.num_groups = wanted.groups(layer.num_channels)


def take_back(layer: Any) -> None:
    """Turn an exchanged layer into the batch norm that it was, with what it has learned since.

    The running statistics are those from before.

    Args:
        layer: An exchanged layer.
    """
    stash: _Stash = layer.__dict__.pop(_STASH)
    for name in ("num_groups", "num_channels"):
        layer.__dict__.pop(name)
    like = next(layer.parameters(recurse=False), None)
    layer.__class__ = _made(stash.recipe)
    layer.__dict__.update(stash.attributes)
    counter = stash.attributes.get("nonfinite_batches")
    if counter is not None and like is not None:
        layer.__dict__["nonfinite_batches"] = counter.to(like.device)
    layer._buffers.update({k: _moved(b, like) for k, b in stash.buffers.items()})


def _moved(buffer: Tensor | None, like: Tensor | None) -> Tensor | None:
    """Where the parameters are, and no less precise than they."""
    if buffer is None or like is None:
        return buffer
    if not buffer.is_floating_point():
        return buffer.to(like.device)
    return buffer.to(like.device, torch.promote_types(buffer.dtype, like.dtype))


class _Dynamic:
    """A group norm with a tail or with the methods of a subclass; pickles by its ingredients."""

    _tail: Tail

    def __reduce_ex__(self, protocol: Any) -> tuple:
        stash: _Stash = self.__dict__[_STASH]
        return _rebuild, (stash.recipe, self._tail), self.__dict__


class _DropAct:
    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))  # pyright: ignore


class _ResidualAct:
    act: Activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        z = super().forward(input)  # pyright: ignore[reportAttributeAccessIssue]
        return self.act(z if residual is None else z + residual)


@cache
def _class_of(cls: type, tail: Tail) -> type:
    own = _own(cls)
    if tail == "none" and not own:
        return GroupNorm
    tails: dict[Tail, tuple[type, ...]] = {
        "none": (),
        "drop_act": (_DropAct,),
        "residual_act": (_ResidualAct,),
    }
    body = {**own, "_tail": tail, "__module__": cls.__module__}
    return type(cls.__name__, (_Dynamic, *tails[tail], GroupNorm), body)


def _rebuild(recipe: Any, tail: Tail) -> Any:
    target: Any = _class_of(_made(recipe), tail)
    return target.__new__(target)


def _recipe(layer: Any) -> Any:
    """The class of a layer; one made by `replace_` is no global name, so how it is made."""
    cls = type(layer)
    return layer.__reduce_ex__(2)[:2] if hasattr(cls, "_bnkit_original") else cls


def _made(recipe: Any) -> type:
    if isinstance(recipe, type):
        return recipe
    make, ingredients = recipe
    return type(make(*ingredients))


def _own(cls: type) -> dict[str, Any]:
    """What a user's subclass adds to a batch norm of torch or bnkit, its forward pass aside."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, _TorchBatchNorm) and not base.__module__.startswith(_KNOWN):
            found |= {k: v for k, v in vars(base).items() if k not in _GENERATED}
    return {k: v for k, v in found.items() if not k.startswith("__")}


_KNOWN = ("torch.nn.", "bnkit.nn.")
_GENERATED = ("forward", "extra_repr", "_check_input_dim", "_bnkit_original", "_bnkit_ours")


def _calls_super(attribute: Any) -> bool:
    function = getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute)
    code = getattr(function, "__code__", None)
    return code is not None and "__class__" in code.co_freevars

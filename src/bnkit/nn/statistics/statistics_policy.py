"""What changes the running statistics of a layer, and when: one small object per layer."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm

from bnkit.core import FrozenWarning, PolicyError
from bnkit.nn.statistics.recompute import recomputing

Normalize = Literal["batch", "running"]
Update = Literal["forward", "commit", "never"]
Recompute = Literal["skip", "update"]


@dataclass(frozen=True, slots=True)
class StatisticsPolicy:
    """What a layer normalizes with in training, and when a batch enters its running statistics.

    Every bnkit layer has one, `layer.statistics_policy`; `bnkit.nn.policy` prints it for a whole
    model. It is changed by `freeze_`, `set_policy_`, `frozen`, `no_update`, `rollback` and
    `commit_on_step`.

    Attributes:
        normalize: `"batch"`: training uses the statistics of the batch. `"running"`: it uses the
            running ones and changes nothing; the layer is frozen.
        update: `"forward"`: every training forward pass counts. `"commit"`: it counts once it is
            committed, and is undone otherwise. `"never"`: the batch is used, not counted.
        recompute: `"skip"`: a forward pass repeated by activation checkpointing does not count
            again. `"update"`: it does, as in torch.

    Raises:
        PolicyError: Another word.

    Example:
        >>> import bnkit
        >>> bnkit.nn.BatchNorm1d(3).statistics_policy
        StatisticsPolicy(normalize='batch', update='forward', recompute='skip')
    """

    normalize: Normalize = "batch"
    update: Update = "forward"
    recompute: Recompute = "skip"

    def __post_init__(self) -> None:
        for name, known in (
            ("normalize", get_args(Normalize)),
            ("update", get_args(Update)),
            ("recompute", get_args(Recompute)),
        ):
            got = getattr(self, name)
            if got not in known:
                words = ", ".join(map(repr, known))
                msg = f"StatisticsPolicy: {name} must be one of {words}, got {got!r}."
                raise PolicyError(msg)

    def counts(self) -> bool:
        """Whether a batch that a forward pass sees now enters the running statistics."""
        if self.update == "never" or self.normalize == "running":
            return False
        return self.recompute == "update" or not recomputing()


DEFAULT = StatisticsPolicy()


@dataclass(frozen=True, slots=True)
class Thaw:
    """What a frozen layer returns to.

    Attributes:
        training: The mode it was last asked for.
        parameters: `requires_grad` of the parameters that were frozen with it.
    """

    training: bool
    parameters: tuple[tuple[str, bool], ...] = ()


class WithPolicy:
    """The policy of a layer; mixed into the layers and their lazy twins, before torch's class."""

    # instances hold their own only where it differs
    _policy: StatisticsPolicy = DEFAULT
    _thaw: Thaw | None = None
    # fairscale would count recomputations and leave out first passes; together with the policy
    # here, nothing would be counted
    disable_patch_batchnorm = True
    # what the batch of this layer is a part of, see bnkit.nn.parts.pooled
    _part: Any = None
    # why its batch can be no part of a larger one, and why its statistics cannot wait
    alone: ClassVar[str | None] = None
    at_once: ClassVar[str | None] = None
    # why `plain_` leaves it as it is; None = it is plain, or becomes so
    not_plain: ClassVar[str | None] = None
    # why `replace_` puts no other normalization in its place, behind the name of the class
    not_exchanged: ClassVar[str] = "is no plain batch norm"

    @property
    def statistics_policy(self) -> StatisticsPolicy:
        """What changes the running statistics of this layer, and when."""
        return self._policy

    def train(self, mode: bool = True) -> Any:  # noqa: FBT001, FBT002  the signature of torch
        """Set the mode, as in torch; a frozen layer remembers it and stays in eval mode."""
        super().train(mode)  # pyright: ignore[reportAttributeAccessIssue]
        if self._thaw is not None:
            self.__dict__["_thaw"] = Thaw(mode, self._thaw.parameters)
            self.training = False
        return self

    def reset_running_stats(self) -> None:
        """As in torch; a frozen layer keeps its statistics and warns."""
        if self._thaw is None:
            super().reset_running_stats()  # pyright: ignore[reportAttributeAccessIssue]
            return
        message = (
            f"{type(self).__name__}.reset_running_stats: the layer is frozen; its running "
            "statistics were left alone. Call bnkit.nn.unfreeze_(layer) first to reset them."
        )
        warnings.warn(message, FrozenWarning, stacklevel=2)


def assign(layer: nn.Module, policy: StatisticsPolicy) -> None:
    """Give a layer its policy; the default one takes no space.

    Args:
        layer: One of bnkit's.
        policy: The new policy.
    """
    if policy == DEFAULT:
        layer.__dict__.pop("_policy", None)
    else:
        layer.__dict__["_policy"] = policy


def batch_norms(model: nn.Module, verb: str) -> dict[str, Any]:
    """The batch norms of a model by name, each once.

    Args:
        model: Any module, also a batch norm itself.
        verb: The function that asks, for its message.

    Returns:
        Torch's and bnkit's layers.

    Raises:
        PolicyError: Not a module.
    """
    if not isinstance(model, nn.Module):
        msg = f"{verb}: expected a torch.nn.Module, got {type(model).__name__}. Pass the model."
        raise PolicyError(msg)
    return {n: m for n, m in model.named_modules() if isinstance(m, (_TorchBatchNorm, WithPolicy))}


def own_batch_norms(model: nn.Module, verb: str, why: str) -> dict[str, Any]:
    """The batch norms of a model, all of which must be bnkit's.

    Args:
        model: Any module.
        verb: The function that asks, for its message.
        why: What torch's layers cannot do, as the end of a sentence.

    Returns:
        bnkit's layers by name.

    Raises:
        PolicyError: One is not.
    """
    layers = batch_norms(model, verb)
    foreign = [
        f"{name!r} ({type(m).__name__})"
        for name, m in layers.items()
        if not isinstance(m, WithPolicy)
    ]
    if foreign:
        msg = (
            f"{verb}: expected bnkit's layers, got {', '.join(foreign)} which {why}. Nothing was "
            "changed. Call bnkit.nn.replace_(model) first, or pass the part of the model that is "
            "meant."
        )
        raise PolicyError(msg)
    return layers

"""The batch norms of a model whose statistics can be estimated, and those that are left alone."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import UninitializedBuffer

from bnkit.core import InputError, PolicyError
from bnkit.nn.statistics.statistics_policy import WithPolicy

Status = Literal["estimated", "unreached", "frozen", "untracked", "not asked for"]
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Layer:
    """One batch norm of a model.

    Attributes:
        name: Its qualified name.
        module: The layer itself.
        status: `"estimated"` if its statistics are to be estimated, else why not in a word.
        reason: The same as a sentence; empty if they are.
    """

    name: str
    module: Any
    status: Status = "estimated"
    reason: str = ""

    @property
    def channels(self) -> int:
        """Numbers in each of the two statistics."""
        return self.module.running_mean.numel()

    @property
    def eps(self) -> float:
        """That of the layer; 0 where it has none, as the frozen ones of some libraries."""
        return getattr(self.module, "eps", 0.0)

    def __str__(self) -> str:
        return f"{self.name!r} ({type(self.module).__name__})"


def find_layers(model: nn.Module, only: Collection[str] | None = None) -> tuple[Layer, ...]:
    """Every batch norm of a model: torch's, bnkit's, and whatever has running statistics.

    Recognized by its buffers `running_mean` and `running_var`, so that layers of other libraries
    are found too. Instance norms are not batch norms. A layer is frozen if bnkit says so, if its
    class is called so, or if it is in eval mode within a model in training mode.

    Args:
        model: Any module.
        only: Names of layers, or of parts that contain them; the others are left alone.

    Returns:
        The layers in the order of the model.

    Raises:
        InputError: A layer without its first input, or without memory.
        PolicyError: `only` names something that is not there, or that is frozen by bnkit.
    """
    found = [_found(model, name, m) for name, m in model.named_modules() if _is_batch_norm(m)]
    if only is not None:
        found = _chosen(found, (only,) if isinstance(only, str) else tuple(only))
    return tuple(found)


def _is_batch_norm(module: nn.Module) -> bool:
    return not isinstance(module, _InstanceNorm) and all(n in module._buffers for n in STATISTICS)


def _found(model: nn.Module, name: str, module: nn.Module) -> Layer:
    layer = Layer(name, module)
    buffers = [module._buffers[n] for n in STATISTICS]
    if any(b is None for b in buffers):
        why = "it keeps no running statistics (track_running_stats=False)"
        return Layer(name, module, "untracked", why)
    if any(isinstance(b, UninitializedBuffer) for b in buffers):
        msg = (
            f"{layer}: expected a layer that has seen an input, got a lazy one. Run one batch "
            "through the model first."
        )
        raise InputError(msg)
    reason = _why_frozen(model, module)
    return Layer(name, module, "frozen", reason) if reason else layer


def _why_frozen(model: nn.Module, module: Any) -> str:
    if isinstance(module, WithPolicy) and module.statistics_policy.normalize == "running":
        return "frozen by bnkit.nn.freeze_"
    if getattr(module, "trainable", True) is False:
        return "it is not trainable"
    if "frozen" in type(module).__name__.lower():
        return f"its class is {type(module).__name__}"
    if model.training and not module.training:
        return "it is in eval mode while the model is in training mode"
    return ""


def _chosen(found: list[Layer], only: tuple[str, ...]) -> list[Layer]:
    unknown = [n for n in only if not any(_within(layer.name, n) for layer in found)]
    if unknown:
        names = ", ".join(repr(layer.name) for layer in found) or "none"
        msg = (
            f"recalibrate: expected names of batch norms or of parts with some, got {unknown[0]!r}."
            f" The batch norms are: {names}."
        )
        raise PolicyError(msg)
    return [_asked_for(layer, any(_within(layer.name, n) for n in only)) for layer in found]


def _asked_for(layer: Layer, wanted: bool) -> Layer:  # noqa: FBT001  two arguments, one meaning
    if not wanted:
        return Layer(layer.name, layer.module, "not asked for", "layers= does not name it")
    if layer.status == "frozen" and layer.reason.startswith("frozen by"):
        msg = f"{layer}: expected a layer that may change, got one {layer.reason}. Unfreeze it."
        raise PolicyError(msg)
    if layer.status == "frozen" and layer.reason.startswith("it is in eval"):
        return Layer(layer.name, layer.module)  # named by its user, who therefore means it
    return layer


def _within(name: str, part: str) -> bool:
    return part in ("", name) or name.startswith(f"{part}.")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, DistributedDataParallel and DataParallel.

    The first would run graphs that know nothing of the observation, the second sends the buffers
    of rank 0 to the others at every forward pass, the third copies the model for every batch.

    Args:
        model: Any module.

    Returns:
        The module that holds the layers; the model itself if it is not wrapped.

    Raises:
        InputError: Not a module.
    """
    if not isinstance(model, nn.Module):
        msg = f"recalibrate: expected a torch.nn.Module, got {type(model).__name__}. Pass a model."
        raise InputError(msg)
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile; its class takes seconds to load
            model = model._modules["_orig_mod"]  # pyright: ignore[reportAssignmentType]
        else:
            return model

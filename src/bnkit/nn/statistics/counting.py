"""Whether forward passes count: for good by `set_policy_`, for a while by `no_update`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _LazyNormBase

from bnkit.core import PolicyError
from bnkit.nn.statistics.statistics_policy import (
    Recompute,
    Update,
    WithPolicy,
    assign,
    batch_norms,
    own_batch_norms,
)


def set_policy_(
    model: nn.Module, *, update: Update | None = None, recompute: Recompute | None = None
) -> tuple[str, ...]:
    """Change when training batches enter the running statistics, in place, for every layer.

    Args:
        model: Any module; pass a part to change a part.
        update: `"never"`: batch statistics are used, the running ones stay, for a teacher in
            training mode. `"forward"`: back to the default.
        recompute: `"update"`: forward passes repeated by activation checkpointing count again,
            as in torch. `"skip"`: back to the default.

    Returns:
        The names of bnkit's batch norms.

    Raises:
        PolicyError: A layer is torch's own, or another word; nothing was changed.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchNorm1d(2)
        >>> bnkit.nn.set_policy_(layer, update="never")
        ('',)
        >>> y = layer(torch.randn(4, 2))
        >>> int(layer.num_batches_tracked)
        0
    """
    if update == "commit":
        msg = (
            "set_policy_: expected update='forward' or 'never', got 'commit', which needs somebody "
            "who commits. Use `with bnkit.nn.rollback(model)` or `bnkit.nn.commit_on_step`."
        )
        raise PolicyError(msg)
    changes: dict[str, Any] = {"update": update, "recompute": recompute}
    changes = {name: word for name, word in changes.items() if word is not None}
    layers = own_batch_norms(model, "set_policy_", "counts every forward pass")
    policies = {name: replace(m.statistics_policy, **changes) for name, m in layers.items()}
    for name, layer in layers.items():
        assign(layer, policies[name])
    return tuple(layers)


@contextmanager
def no_update(model: nn.Module) -> Iterator[None]:
    """Within a `with`, training batches are normalized as ever and leave no trace.

    For forward passes that see the same batch a second time or see no real data: the second
    step of SAM (Foret et al. 2021), the perturbed pass of VAT (Miyato et al. 2018), teachers in
    training mode, mixed or generated samples. Batch statistics are used, gradients are the usual
    ones, running statistics and counters stay. Torch's own batch norms obey as well.

    A copy or a pickle made inside keeps the policy.

    Args:
        model: Any module.

    Yields:
        Nothing; afterwards every layer is as it was.

    Raises:
        PolicyError: Not a module, or a lazy layer of torch that has not seen its first input.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchNorm1d(2)
        >>> with bnkit.nn.no_update(layer):
        ...     y = layer(torch.randn(4, 2))
        >>> int(layer.num_batches_tracked), layer.running_mean.tolist()
        (0, [0.0, 0.0])
    """
    layers = batch_norms(model, "no_update")
    _refuse_unborn(layers)
    with ExitStack() as undo:
        for layer in layers.values():
            undo.callback(_silence(layer))
        yield


def _silence(layer: Any) -> Callable[[], None]:
    if isinstance(layer, WithPolicy):
        before = layer.statistics_policy.update
        return _set_update(layer, "never", before)
    tracked = layer.track_running_stats
    layer.track_running_stats = False  # torch passes no buffers then, in training only
    return partial(setattr, layer, "track_running_stats", tracked)


def _set_update(layer: Any, update: Update, before: Update) -> Callable[[], None]:
    assign(layer, replace(layer.statistics_policy, update=update))
    return lambda: assign(layer, replace(layer.statistics_policy, update=before))


def _refuse_unborn(layers: dict[str, Any]) -> None:
    unborn = [
        f"{name!r} ({type(m).__name__})"
        for name, m in layers.items()
        if isinstance(m, _LazyNormBase) and not isinstance(m, WithPolicy)
    ]
    if unborn:
        msg = (
            f"no_update: expected layers that have seen an input, got {', '.join(unborn)}, which "
            "torch would leave without running statistics. Run one batch first, or call "
            "bnkit.nn.replace_(model)."
        )
        raise PolicyError(msg)

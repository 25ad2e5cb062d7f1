"""Running statistics that count once they are committed, and are rolled back otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm
from torch.nn.parameter import UninitializedBuffer

from bnkit.core import PolicyError
from bnkit.nn.statistics.statistics_policy import Update, WithPolicy, assign, batch_norms


class Rollback:
    """Running statistics of a model as of the last commit.

    Made by `rollback` and `commit_on_step`. It holds a copy of every buffer of the batch norms;
    parameters are not its business.

    Attributes:
        commits: How often `commit` was called.
    """

    commits: int

    def __init__(self, layers: dict[str, Any]) -> None:
        self._layers = tuple(layers.values())
        self.commits = 0
        self._saved = self._copies()

    def commit(self) -> None:
        """Keep what the running statistics are now; a later roll back returns to here."""
        self._saved = self._copies()
        self.commits += 1

    def rollback(self) -> None:
        """Return to the last commit, or to the start; nothing happens right after a commit."""
        with torch.no_grad():
            for layer, buffers in self._saved:
                # not exchanged for another normalization meanwhile
                if isinstance(layer, (_TorchBatchNorm, WithPolicy)):
                    _put_back(layer, buffers)

    def _copies(self) -> list[tuple[Any, dict[str, Tensor | None]]]:
        return [(layer, _buffers(layer)) for layer in self._layers]


@contextmanager
def rollback(model: nn.Module) -> Iterator[Rollback]:
    """Undo within a `with` what training forward passes do to the running statistics.

    Inside, the layers work as ever, and see the statistics that they update. At the end, also
    after an exception, everything since the last `commit()` is undone, in the same tensors:
    averages, `num_batches_tracked`, and what other buffers a layer has. Torch's own batch norms
    obey as well. `nonfinite_batches`, which reports what happened, stays.

    Call `backward()` inside: afterwards autograd may find that statistics which it needs were
    written to, for torch's own layers in particular.

    Args:
        model: Any module.

    Yields:
        The object to commit with.

    Raises:
        PolicyError: Not a module.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchNorm1d(2)
        >>> with bnkit.nn.rollback(layer) as r:
        ...     y = layer(torch.randn(4, 2))
        ...     r.commit()
        ...     y = layer(torch.randn(4, 2))
        >>> int(layer.num_batches_tracked)
        1
    """
    layers = batch_norms(model, "rollback")
    transaction = Rollback(layers)
    before: dict[Any, Update] = {
        m: m.statistics_policy.update for m in layers.values() if isinstance(m, WithPolicy)
    }
    try:
        for layer, update in before.items():
            if update != "never":
                _set_update(layer, "commit")
        yield transaction
    finally:
        for layer, update in before.items():
            _set_update(layer, update)
        transaction.rollback()


@contextmanager
def commit_on_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Rollback]:
    """Let batches enter the running statistics when `optimizer.step()` runs, or not at all.

    A step that `torch.amp.GradScaler` skips, because a gradient overflowed, leaves no trace, and
    neither does one that is left out by hand or stopped by an exception. Without it the batch of
    a skipped step counts: its activations were finite (a batch that is not finite itself is left
    out by each layer, `on_nonfinite`).

    Use it around one step, with all its micro-batches. Around the whole loop it costs less; then
    call `rollback()` after each step, which does nothing if the step ran.

    Args:
        model: Any module; torch's own batch norms obey as well.
        optimizer: The one whose steps count. Fused optimizers, which look for the overflow
            themselves, are asked (on a GPU this waits for it).

    Yields:
        The object that commits.

    Raises:
        PolicyError: Not a module, or not an optimizer.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(bnkit.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
        >>> for skipped in (True, False):
        ...     with bnkit.nn.commit_on_step(model, optimizer):
        ...         model(torch.randn(4, 2)).sum().backward()
        ...         if not skipped:
        ...             optimizer.step()
        ...     print(int(model[0].num_batches_tracked))
        0
        1
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        msg = (
            f"commit_on_step: expected a torch.optim.Optimizer, got {type(optimizer).__name__}. "
            "Pass the optimizer itself, not what wraps it."
        )
        raise PolicyError(msg)
    with rollback(model) as transaction:

        def after_step(stepped: Any, *_: Any) -> None:
            overflow = getattr(stepped, "found_inf", None)  # set by GradScaler for fused ones
            if overflow is None or not bool(overflow):
                transaction.commit()

        handle = optimizer.register_step_post_hook(after_step)
        try:
            yield transaction
        finally:
            handle.remove()


def _set_update(layer: Any, update: Update) -> None:
    assign(layer, replace(layer.statistics_policy, update=update))


def _buffers(layer: nn.Module) -> dict[str, Tensor | None]:
    """Copies of the buffers; None for one without channels yet."""
    return {
        name: None if isinstance(b, UninitializedBuffer) else b.detach().clone()
        for name, b in layer.named_buffers()
    }


def _put_back(layer: Any, buffers: dict[str, Tensor | None]) -> None:
    if layer.__dict__.get("live") is not None:
        layer.live = None  # what the graph says of the statistics holds no longer
    for name, saved in buffers.items():
        owner, _, last = name.rpartition(".")
        holder = layer.get_submodule(owner)
        if last not in holder._buffers:  # the layer is of another class now
            continue
        now = holder._buffers[last]
        if saved is None:
            if not isinstance(now, UninitializedBuffer) and getattr(layer, "_thaw", None) is None:
                layer.reset_running_stats()
        elif now is None or now.shape != saved.shape:
            holder._buffers[last] = saved.clone()
        else:
            now.copy_(saved)

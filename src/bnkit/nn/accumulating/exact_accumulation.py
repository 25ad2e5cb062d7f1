"""Micro-batches that give the output and the gradient of the one big batch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.core import InputError, Moments, merge
from bnkit.nn.accumulating.accumulation import attached, batch_norms, outside
from bnkit.nn.parts.pooled import commit
from bnkit.nn.parts.processes import Processes
from bnkit.ops import StatisticsBuffers

Loss = Callable[[nn.Module, Any], Tensor]


def accumulate_exactly(model: nn.Module, micro_batches: Iterable[Any], loss: Loss) -> Tensor:
    """Backpropagate k micro-batches as the one big batch, with the memory of one micro-batch.

    Every batch norm normalizes by the moments of the whole batch, and its backward pass uses the
    two sums over the whole batch, so that outputs, `.grad` and running statistics are those of
    `loss(model, whole_batch).backward()` up to rounding, also where micro-batches differ in size.

    **The cost**: the moments at the second batch norm need all micro-batches behind the first,
    and the sums at the last but one need them behind the last. A network in which batch norm runs
    s times a forward pass takes s + 1 passes over all micro-batches without gradient, each up to
    the next batch norm, then at most s with gradient, each back to the batch norm before, and one
    complete pass: about s forward and s / 2 backward passes more than ordinary accumulation. Only
    4 C numbers per batch norm are kept in between.

    Args:
        model: A module whose batch norms are bnkit's; those in eval mode stay as they are.
        micro_batches: The parts; kept as a list, for `loss` runs many times on each.
        loss: `loss(model, micro_batch)`, the part's share: the loss of the whole batch must be
            the sum of the shares, e.g. `cross_entropy(..., reduction="sum") / whole_batch_size`.
            It must do the same each time: random numbers of torch are repeated for it (dropout),
            other state is not. It runs the batch norms in the same order for every part, without
            activation checkpointing, and takes no derivative itself.

    Returns:
        The loss of each micro-batch, shape `(k,)`, detached.

    Raises:
        InputError: No micro-batch; a loss that is no scalar with a gradient; batch norms that run
            in another order for another micro-batch, or in the backward pass; layers that are
            synchronized with other processes, or in another context.
        ConversionError: A batch norm of torch in training mode; call `replace_` first. A layer
            whose batch cannot be a part of a larger one: ghost batch norm, batch renormalization,
            `BatchNorm`, `DifferentiableBatchNorm`.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), bnkit.nn.BatchNorm1d(3))
        >>> x = torch.randn(8, 2)
        >>> losses = bnkit.nn.accumulate_exactly(model, x.split(3), lambda m, v: m(v).pow(3).sum())
        >>> model.zero_grad()
        >>> torch.allclose(losses.sum(), model(x).pow(3).sum(), atol=1e-4)
        True
    """
    parts = list(micro_batches)
    if not parts:
        msg = "accumulate_exactly: expected at least one micro-batch, got none. Give it the data."
        raise InputError(msg)
    layers = batch_norms("accumulate_exactly", model, "alone")
    _check_alone(layers)
    replay = _Replay()
    run = _Run(model, parts, loss, int(torch.randint(2**62, ())))
    with attached(layers, [replay] * len(layers)):
        _find_moments(replay, run)
        _find_sums(replay, run)
        losses = torch.stack([_backward(replay, run, i) for i in range(len(parts))])
    for site in replay.sites:
        if site.whole is not None and site.buffers is not None:
            commit(site.layer, site.buffers, site.whole)
    return losses


@dataclass(eq=False)
class _Site:
    """One run of a batch norm within a forward pass."""

    layer: Any
    name: str
    moments: list[Moments] = field(default_factory=list)
    whole: Moments | None = None
    sums: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    total: tuple[Tensor, Tensor] | None = None
    buffers: StatisticsBuffers | None = None


class _Pause(BaseException):
    """A forward pass has come as far as it can; no error, so that `except Exception` lets it by."""


class _Replay:
    """The `Part` of all layers: which batch norm is running, and what is known about it."""

    def __init__(self) -> None:
        self.sites: list[_Site] = []
        self.position = 0
        self.complete = False
        self.watched: _Site | None = None
        self.watched_input: Tensor | None = None

    def __str__(self) -> str:
        return "accumulating=exactly"

    def __reduce__(self) -> tuple:
        """A copy of the layer is not in the context."""
        return outside, ()

    def start(self, watched: _Site | None = None) -> None:
        """Before a forward pass."""
        self.position, self.watched, self.watched_input = 0, watched, None

    def begin(self, layer: Any, input: Tensor, where: Callable[[], str]) -> "_AtSite":
        """The next site; it must be the one that the other passes met there."""
        if self.position == len(self.sites) and not self.complete:
            self.sites.append(_Site(layer, where()))
        known = self.sites[self.position : self.position + 1]
        if not known or known[0].layer is not layer:
            name = next((s.name for s in self.sites if s.layer is layer), None) or where()
            msg = (
                f"{name}: expected the batch norms of the model to run in the same order for "
                f"every micro-batch, got this one at position {self.position + 1} of "
                f"{len(self.sites)}. Remove random or data-dependent branches and activation "
                "checkpointing, or use bnkit.nn.accumulate."
            )
            raise InputError(msg)
        self.position += 1
        if known[0] is self.watched:
            self.watched_input = input
        return _AtSite(self, known[0])

    def commit(self, layer: Any, buffers: StatisticsBuffers, whole: Moments) -> None:  # noqa: ARG002
        """Not now: the passes are repeated."""
        self.sites[self.position - 1].buffers = buffers


class _AtSite:
    """The `Pool` of one site in one pass."""

    def __init__(self, replay: _Replay, site: _Site) -> None:
        self.replay, self.site = replay, site

    def where(self) -> str:
        """The name that the layer had in the first pass; a backward pass cannot tell it."""
        return self.site.name

    def merge(self, local: Moments) -> Moments:
        """The whole, or note this part and go no further."""
        if self.site.whole is not None:
            return self.site.whole
        self.site.moments.append(local)
        raise _Pause

    def total(self, grad_bias: Tensor, grad_weight: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over the whole, or note those of this part."""
        if self.site is self.replay.watched:
            self.site.sums.append((grad_bias, grad_weight))
        return self.site.total or (grad_bias, grad_weight)


@dataclass(frozen=True)
class _Run:
    model: nn.Module
    parts: list[Any]
    loss: Loss
    seed: int

    def __call__(self, i: int) -> Tensor:
        """The loss of micro-batch i, with the same random numbers each time."""
        with self._random_numbers(i):
            found = self.loss(self.model, self.parts[i])
        if not isinstance(found, Tensor) or found.numel() != 1:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
            msg = f"accumulate_exactly: expected a loss with one value, got {got}. Sum it up."
            raise InputError(msg)
        return found.reshape(())

    @contextmanager
    def _random_numbers(self, i: int) -> Iterator[None]:
        tensors = (*self.model.parameters(), *self.model.buffers())
        devices = {t.device for t in tensors if t.device.type == "cuda"}
        with torch.random.fork_rng(list(devices)):
            torch.manual_seed(self.seed + i)
            yield


def _find_moments(replay: _Replay, run: _Run) -> None:
    """Forward passes, each up to the next batch norm, until none is left."""
    while True:
        paused = [_pauses(replay, run, i) for i in range(len(run.parts))]
        if not any(paused):
            replay.complete = True
            return
        if not all(paused):
            msg = (
                "accumulate_exactly: expected every micro-batch to run the same batch norms, got "
                f"number {len(replay.sites)} for some and not for micro-batch "
                f"{paused.index(False)}. Remove data-dependent branches."
            )
            raise InputError(msg)
        site = replay.sites[-1]
        site.whole = reduce(merge, site.moments)


def _pauses(replay: _Replay, run: _Run, i: int) -> bool:
    replay.start()
    with torch.no_grad():
        try:
            run(i)
        except _Pause:
            return True
    return False


def _find_sums(replay: _Replay, run: _Run) -> None:
    """Backward passes, each back to the batch norm before; nothing reaches `.grad`."""
    for site in reversed(replay.sites):
        for i in range(len(run.parts)):
            replay.start(site)
            value = run(i)
            at = replay.watched_input
            if at is None or not at.requires_grad or not value.requires_grad:
                continue  # no gradient by this input, so that nobody needs the sums
            torch.autograd.grad(value, at, allow_unused=True)
        if site.sums:
            by_bias, by_weight = (torch.stack(v).sum(0) for v in zip(*site.sums, strict=True))
            site.total = by_bias, by_weight


def _backward(replay: _Replay, run: _Run, i: int) -> Tensor:
    replay.start()
    value = run(i)
    if not value.requires_grad:
        msg = (
            "accumulate_exactly: expected a loss with a gradient, got one that depends on no "
            "parameter. Is the model frozen, or torch.no_grad active?"
        )
        raise InputError(msg)
    value.backward()
    return value.detach()


def _check_alone(layers: list[Any]) -> None:
    parts = [layer._part for layer in layers if layer._part is not None]
    taken = [p for p in parts if not (isinstance(p, Processes) and p.size() == 1)]
    if taken:
        msg = (
            f"accumulate_exactly: expected layers whose batch is their own, got {len(taken)} with "
            f"{taken[0]}. Call bnkit.nn.revert_sync_batchnorm(model), or leave the other context; "
            "several processes cannot take part."
        )
        raise InputError(msg)

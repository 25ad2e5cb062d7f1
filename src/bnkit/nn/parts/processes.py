"""A batch that is spread over the processes of `torch.distributed`."""

from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import torch
import torch.distributed as dist
from torch import Tensor

from bnkit.core import InputError, Moments, SynchronizationError, merge_stacked
from bnkit.nn.parts.pooled import commit
from bnkit.ops import StatisticsBuffers


class Processes:
    """The processes of a group, each with a part of the batch.

    One `all_gather` forward, of count, mean and m2 per channel, and one `all_reduce` backward, of
    two sums per channel; both in float64, so that a process with another dtype or no sample fits
    in. The first forward pass of a layer also compares the number of channels.

    Args:
        process_group: A group of `torch.distributed`, or None for all processes.
    """

    def __init__(self, process_group: Any = None) -> None:
        self.process_group = process_group
        self._met: tuple | None = None
        self._name = ""

    def begin(self, layer: Any, input: Tensor, where: Callable[[], str]) -> "_Exchange | None":
        """The exchange of one forward pass, or None where this process is alone."""
        size = self.size()
        if size < 1:
            msg = (
                f"{where()}: expected this process, rank {dist.get_rank()} of "
                f"{dist.get_world_size()}, to be a member of the layer's process group, it is not. "
                "Give each process the group that it belongs to."
            )
            raise InputError(msg)
        if size == 1:
            return None
        if torch.compiler.is_compiling():
            return _Exchange(self.process_group, size, where)
        met = (id(self.process_group), size, layer.num_features)
        if self._met != met:
            self._name = where()  # for the backward pass, where nothing tells it
            _Exchange(self.process_group, size, where).agree(layer.num_features, input.device)
            self._met = met
        return _Exchange(self.process_group, size, lambda: self._name)

    def commit(self, layer: Any, buffers: StatisticsBuffers, whole: Moments) -> None:
        """Average the whole batch in; every process has the same moments."""
        commit(layer, buffers, whole)

    def size(self) -> int:
        """Processes of the group; 1 without `init_process_group`, -1 if this one is no member."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.process_group)

    def __str__(self) -> str:
        """For the repr of a layer."""
        return "synchronized=True"

    def __deepcopy__(self, memo: dict) -> "Processes":
        """The copy shares the group, as it shares a device; a group itself cannot be copied."""
        return type(self)(self.process_group)

    def __getstate__(self) -> dict:
        """A group exists in one process only, so that it cannot be pickled."""
        if self.process_group is not None:
            msg = (
                "Processes: a process group cannot be pickled. Save the state_dict, or save the "
                "model after bnkit.nn.revert_sync_batchnorm."
            )
            raise InputError(msg)
        return {"process_group": None, "_met": None, "_name": ""}


class _Exchange:
    """The `Pool` of one forward pass and its backward pass."""

    def __init__(self, group: Any, size: int, where: Callable[[], str]) -> None:
        self.group, self.size, self.where = group, size, where

    def agree(self, num_features: int, device: torch.device) -> None:
        """Raise `SynchronizationError` unless all processes have as many channels."""
        mine = torch.tensor([num_features], device=device)
        found = self._gather(mine).flatten().tolist()
        if len(set(found)) > 1:
            msg = (
                f"{self.where()}: expected the same number of channels in every process, got "
                f"{found} for ranks 0 to {self.size - 1} of the group. Build the same model in "
                "every process, and call its layers in the same order."
            )
            raise SynchronizationError(msg)

    def merge(self, local: Moments) -> Moments:
        """Moments of all parts, from one all_gather."""
        mean = local.mean
        count = torch.as_tensor(local.count, device=mean.device)
        real = torch.view_as_real(mean).unbind(-1) if mean.is_complex() else (mean,)
        rows = [v.to(torch.float64).expand(mean.shape) for v in (count, local.m2, *real)]
        counts, m2, *real = self._gather(torch.stack(rows)).unbind(1)
        means = torch.complex(*real) if mean.is_complex() else real[0]
        return merge_stacked(Moments(counts, means, m2), xp=xp)

    def total(self, grad_bias: Tensor, grad_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Both sums over all parts, from one all_reduce."""
        both = torch.stack([grad_bias, grad_weight])
        wide = both.to(torch.complex128 if both.is_complex() else torch.float64)
        flat = torch.view_as_real(wide) if wide.is_complex() else wide
        flat = flat.contiguous()
        self._run("all_reduce", lambda: dist.all_reduce(flat, group=self.group))
        wide = torch.view_as_complex(flat) if wide.is_complex() else flat
        by_bias, by_weight = wide.to(both.dtype).unbind(0)
        return by_bias, by_weight

    def _gather(self, part: Tensor) -> Tensor:
        """`(size, *part.shape)`."""
        found = part.new_empty(self.size * part.numel())
        flat = part.contiguous().flatten()
        self._run("all_gather", lambda: dist.all_gather_single(found, flat, group=self.group))
        return found.reshape(self.size, *part.shape)

    def _run(self, name: str, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            msg = (
                f"{self.where()}: {name} among {self.size} processes failed in rank "
                f"{dist.get_rank()}: {error}. Has another process ended, raised an error, or "
                "skipped this layer (one in eval mode, a branch that only some take)?"
            )
            raise SynchronizationError(msg) from error

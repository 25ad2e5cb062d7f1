"""Batch norm over the batch of all processes."""

from typing import Any

import torch
from torch import nn

from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.parts.processes import Processes
from bnkit.ops import NonFinitePolicy


class SyncBatchNorm(BatchNormBase):
    """Batch norm over `(N, C, ...)` of all processes together; otherwise as `BatchNorm2d`.

    In training every process contributes the count, mean and m2 of its part, and all of them
    normalize by the moments of the union (theory page, equation 9) and store the same running
    statistics. Parts may differ in size, also be empty. The gradient by the input is that of one
    process with the whole batch whose loss is the sum of the losses; the gradients of weight and
    bias are those of the part, for DistributedDataParallel to average like all others.

    Takes the arguments of `torch.nn.SyncBatchNorm` and differs from it in this: it runs on
    every device that the group's backend serves (gloo on the CPU, NCCL); it is no instance of it,
    because DistributedDataParallel refuses those on the CPU; statistics are never narrower than
    float32, and counts are exact.

    Costs one `all_gather` of 3 C doubles forward and one `all_reduce` of 2 C doubles backward.
    Alone, in eval mode, or without `torch.distributed.init_process_group` it is `BatchNorm2d`. A
    second derivative is refused where there is more than one process. It compiles with
    `fullgraph=True`; a compiled layer does not compare the number of channels.

    Args:
        num_features: Channels C.
        eps: Added to the variance, inside the square root.
        momentum: Weight of the new batch in the running statistics; None = cumulative average.
        affine: Learn a weight (and a bias).
        track_running_stats: Keep running statistics.
        process_group: A group of `torch.distributed` that holds this process; None = all.
        device: Device of parameters and buffers.
        dtype: Dtype of the parameters.
        bias: Learn a bias, where `affine`.
        on_nonfinite: As in `BatchNorm2d`; one bad part makes the whole batch bad.

    Raises:
        InputError: As in `BatchNorm2d`, in the process with the bad input; one value per channel
            in all processes together; a process that is no member of the group.
        SynchronizationError: Different numbers of channels (found in the first forward pass); a
            process that has ended or does not answer within the timeout of the group.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.SyncBatchNorm(3)
        >>> tuple(layer(torch.randn(4, 3, 5)).shape)  # one process: BatchNorm1d
        (4, 3, 5)
    """

    ranks = (2, 3, 4, 5)
    not_plain = "its input may have any rank; load its state_dict into BatchNorm1d, 2d or 3d"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,  # noqa: FBT001, FBT002  the signature of torch
        track_running_stats: bool = True,  # noqa: FBT001, FBT002
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        on_nonfinite: NonFinitePolicy = "skip",
    ) -> None:
        self.__dict__["process_group"] = process_group
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            on_nonfinite=on_nonfinite,
        )

    def _extend(self, on_nonfinite: NonFinitePolicy) -> None:
        super()._extend(on_nonfinite)
        if self._part is None:  # this was a layer of torch; a group in it could not be copied
            self._part = Processes(self.__dict__.pop("process_group", None))

    @staticmethod
    def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
        """`bnkit.nn.convert_sync_batchnorm`, at the place where torch has it."""
        from bnkit.nn.replacing.convert_sync import convert_sync_batchnorm

        return convert_sync_batchnorm(module, process_group)

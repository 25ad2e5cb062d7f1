"""Parameters and statistics of `BatchNorm`: made, reset, converted and loaded."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from bnkit.nn.axis.parameter_rules import Initializer, initialize_
from bnkit.nn.layers.recipe import Ghost, Renorm
from bnkit.nn.layers.renorm_buffers import (
    add_renorm_buffers,
    renorm_names,
    reset_renorm_buffers,
    seed_renorm_buffers,
)
from bnkit.nn.statistics.statistics_policy import WithPolicy
from bnkit.nn.statistics.wide import converted_widely

STATISTICS = ("running_mean", "running_var")


class AxisState(WithPolicy, nn.Module):
    """What a `BatchNorm` keeps; not for direct use."""

    alone = "its channels may be any axes; put layer.plain(ndim) in its place"
    not_exchanged = "may have its channels anywhere"
    not_plain = "its input may have any rank; put layer.plain(ndim) in its place"
    track_running_stats = True
    num_features: tuple[int, ...]
    initializers: dict[str, Initializer]
    ghost: Ghost | None
    renorm: Renorm | None
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    @property
    def trainable(self) -> bool:
        """Whether the layer learns and averages statistics; Keras' `trainable`."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(self._trainable)

    def reset_running_stats(self) -> None:
        """The statistics before the first batch; a frozen layer keeps its own and warns."""
        if self._thaw is not None:
            super().reset_running_stats()
            return
        for name in STATISTICS:
            initialize_(f"BatchNorm: {name}", getattr(self, name), self.initializers[name])
        self.num_batches_tracked.zero_()
        if self.renorm is not None:
            reset_renorm_buffers(self)

    def reset_parameters(self) -> None:
        """All values as after construction."""
        self.reset_running_stats()
        for name in ("weight", "bias"):
            if getattr(self, name) is not None:
                initialize_(f"BatchNorm: {name}", getattr(self, name), self.initializers[name])

    def _create(self, learned: dict[str, bool], device: Any, dtype: torch.dtype | None) -> None:
        for parameter, wanted in learned.items():
            empty = torch.empty(self.num_features, device=device, dtype=dtype)
            self.register_parameter(parameter, nn.Parameter(empty) if wanted else None)
        kind = torch.promote_types(torch.empty((), dtype=dtype).dtype, torch.float32)
        for statistic in STATISTICS:
            real = kind.to_real() if statistic == "running_var" else kind
            empty = torch.empty(self.num_features, device=device, dtype=real)
            self.register_buffer(statistic, empty)
        counter = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", counter)
        self.nonfinite_batches, self._reported = counter.clone(), 0
        if self.renorm is not None:
            add_renorm_buffers(self, self.running_mean, self.renorm.rule)
        self.reset_parameters()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        convert = super()._apply
        converted_widely(self, self._statistics(), lambda: convert(fn, recurse))
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        convert = super()._load_from_state_dict
        converted_widely(self, self._statistics(), lambda: convert(*args, **kwargs))
        if self.renorm is not None:
            seed_renorm_buffers(self, *args)

    def _statistics(self) -> tuple[str, ...]:
        added = () if self.renorm is None else renorm_names(self.renorm.rule)
        return (*STATISTICS, *added)

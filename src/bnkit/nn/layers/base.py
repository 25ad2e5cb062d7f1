"""What the batch norm layers share: torch's layer with the core inside."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm

from bnkit.core import InputError, NonFiniteWarning
from bnkit.nn.checks import check_policy, check_rank
from bnkit.nn.functional import batch_norm
from bnkit.nn.naming import qualified_name
from bnkit.nn.parts.pooled import Part, train_on_part
from bnkit.nn.statistics.statistics_policy import WithPolicy
from bnkit.ops import IDENTITY, Activation, NonFinitePolicy
from bnkit.ops.plain import is_plain

_STATISTICS = ("running_mean", "running_var")


class BatchNormBase(WithPolicy, _TorchBatchNorm):
    """Forward pass, statistics and messages of `BatchNorm1d/2d/3d`; not for direct use."""

    ranks: tuple[int, ...]
    on_nonfinite: NonFinitePolicy
    inplace = False
    nonfinite_batches: Tensor | None
    _part: Part | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,  # noqa: FBT001, FBT002  the signature of torch
        track_running_stats: bool = True,  # noqa: FBT001, FBT002
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        on_nonfinite: NonFinitePolicy = "skip",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self._extend(on_nonfinite)

    def forward(self, input: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n c *spatial"]:
        """Normalize; in training also average the batch into the running statistics."""
        return self._normalize(input)

    def _normalize(
        self, input: Tensor, residual: Tensor | None = None, act: Activation = IDENTITY
    ) -> Tensor:
        where = partial(qualified_name, self)
        if not isinstance(input, Tensor):
            return self._as_leaf(where, input, residual)
        check_rank(where, input, self.ranks)
        # what a module holds is looked up by a function in Python: once each
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        # a frozen layer whose `training` was set by hand stays frozen
        training = self.training and self._policy.normalize == "batch"
        if training and self._part is not None:
            return train_on_part(self, input, residual, act)
        tracks = not training or (self.track_running_stats and self._policy.counts())
        no_counter = batches is None and self.momentum is None
        y = batch_norm(
            input,
            mean if tracks else None,
            var if tracks else None,
            self.weight,
            self.bias,
            training or (mean is None and var is None),
            0.0 if no_counter else self.momentum,
            self.eps,
            num_batches_tracked=batches if tracks else None,
            nonfinite_batches=self._left_out(input) if tracks and training else None,
            residual=residual,
            act=act,
            inplace=self.inplace,
            on_nonfinite=self.on_nonfinite,
            where=where,
        )
        # reading the counter of a GPU would wait for it; there, train() and eval() report
        if self.training and input.device.type == "cpu" and not torch.compiler.is_compiling():
            self._report_nonfinite(where)
        return y

    def _left_out(self, input: Tensor) -> Tensor | None:
        """The counter of batches left out, where the input is."""
        counter = self.nonfinite_batches
        if counter is None or torch.compiler.is_exporting():
            return None
        if counter.device != input.device:
            self.nonfinite_batches = counter = torch.zeros_like(counter, device=input.device)
            self._reported = 0
        return counter

    def _as_leaf(self, where: Callable[[], str], input: Any, residual: Any) -> Any:
        """One node of a symbolic trace, as torch's layers are."""
        if isinstance(input, torch.fx.Proxy):
            tracer: Any = input.tracer
            given = (input,) if residual is None else (input, residual)
            return tracer.create_proxy("call_module", tracer.path_of_module(self), given, {})
        msg = f"{where()}: expected a torch.Tensor, got {type(input).__name__}. Convert it first."
        raise InputError(msg)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  the signature of torch
        """Set the mode, as in torch; also reports batches that were left out on a GPU."""
        self._report_nonfinite(partial(qualified_name, self))
        return super().train(mode)

    def extra_repr(self) -> str:
        """As in torch; `on_nonfinite` is shown when it is not the default."""
        text = super().extra_repr()
        text = text if self._part is None else f"{text}, {self._part}"
        return text if self.on_nonfinite == "skip" else f"{text}, on_nonfinite={self.on_nonfinite}"

    def reset_running_stats(self) -> None:
        """As in torch; also forgets the batches that were left out."""
        super().reset_running_stats()
        counter = getattr(self, "nonfinite_batches", None)  # torch's constructor calls this too
        if counter is not None:
            counter.zero_()
            self._reported = 0

    def _extend(self, on_nonfinite: NonFinitePolicy) -> None:
        """Add what torch's layer lacks; also called on a layer that was torch's."""
        check_policy(lambda: type(self).__name__, on_nonfinite)
        self.on_nonfinite = on_nonfinite
        self._reported = 0
        # no buffer: nothing that copies, synchronizes or initializes buffers should touch it
        device = None if self.running_mean is None else self.running_mean.device
        counter = None if device is None else torch.zeros((), dtype=torch.long, device=device)
        self.__dict__["nonfinite_batches"] = counter
        self._widen_statistics({})

    def _widen_statistics(self, originals: dict[str, Tensor | None]) -> None:
        for name in _STATISTICS:
            now = self._buffers.get(name)
            if now is None or isinstance(now, torch.nn.UninitializedBuffer):
                continue
            if now.dtype in (torch.float16, torch.bfloat16):
                source = originals.get(name)
                source = now if source is None else source
                dtype = torch.promote_types(source.dtype, torch.float32)
                self._buffers[name] = source.to(device=now.device, dtype=dtype)
            elif name == "running_var" and now.is_complex():
                self._buffers[name] = now.real.clone()

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        # .half() and .bfloat16() convert parameters only: at weight 0.001 a bfloat16 running
        # mean freezes at 40 % of its value, because the steps round to nothing
        originals = {name: self._buffers.get(name) for name in _STATISTICS}
        super()._apply(fn, recurse)
        self._widen_statistics(originals)
        counter = self.__dict__.get("nonfinite_batches")
        mean = self._buffers.get("running_mean")
        if counter is not None and mean is not None and mean.device != counter.device:
            blank = torch.zeros_like(counter, device=mean.device)
            meta = counter.device.type == "meta"
            self.__dict__["nonfinite_batches"] = blank if meta else counter.to(mean.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._widen_statistics({})  # load_state_dict(assign=True) may bring 16-bit statistics

    def _report_nonfinite(self, where: Callable[[], str]) -> None:
        counter = getattr(self, "nonfinite_batches", None)
        if counter is None or counter.device.type == "meta" or not is_plain((counter,)):
            return
        total = counter.item()
        first = self._reported == 0
        if total <= self._reported:
            self.__dict__["_reported"] = total  # Module.__setattr__ takes its time
            return
        self._reported = total
        if first:
            message = (
                f"{where()}: NaN or infinity in the statistics of a batch; {total} batch(es) so "
                "far did not enter the running statistics. Find where it overflows, e.g. with "
                "torch.autograd.detect_anomaly()."
            )
            warnings.warn(message, NonFiniteWarning, stacklevel=3)

"""Batch renormalization: batch norm that trains with what inference will use."""

from typing import Any, Self

from torch import Tensor

from bnkit.core import RenormLimits, RenormRule, RenormSchedule, SpecError
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.layers.recipe import Recipe, Renorm, Where, train_step
from bnkit.nn.layers.renorm_buffers import (
    add_renorm_buffers,
    renorm_buffers,
    renorm_names,
    reset_renorm_buffers,
    seed_renorm_buffers,
)
from bnkit.nn.layers.renorm_limits import renorm_limits
from bnkit.nn.layers.variant import Variant, refuse_complex
from bnkit.nn.statistics.wide import converted_widely

_PAPER = RenormSchedule()


class _Renorm(Variant):
    """Adds the reference statistics and the correction by them."""

    added = ("renorm", *renorm_names("plain"), *renorm_names("debiased"))
    alone = "r and d compare the batch of one process with the running statistics"
    renorm: Renorm

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        *args: Any,
        limits: RenormLimits | RenormSchedule = _PAPER,
        renorm_momentum: float | None = None,
        rule: RenormRule = "plain",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, *args, **kwargs)
        self._renormalize(limits, renorm_momentum, rule)

    def _renormalize(
        self,
        limits: RenormLimits | RenormSchedule,
        renorm_momentum: float | None,
        rule: RenormRule,
    ) -> None:
        name = type(self).__name__
        limits = renorm_limits(name, limits)
        if self.running_mean is None:
            msg = (
                f"{name}: expected track_running_stats=True: batch renormalization corrects the "
                "batch by its running statistics. Use the plain batch norm without them."
            )
            raise SpecError(msg)
        self.renorm = Renorm(limits=limits, ema_weight=renorm_momentum, rule=rule)
        self.renorm.check(name)
        add_renorm_buffers(self, self.running_mean, rule)

    def _train_step(self, where: Where, input: Tensor) -> Tensor:
        refuse_complex(where, input, "batch renormalization")
        recipe = Recipe(
            eps=self.eps,
            ema_weight=self._ema_weight,
            renorm=self.renorm,
            on_nonfinite=self.on_nonfinite,
            updates=self._tracks,
        )
        buffers = renorm_buffers(self, self._left_out(input))
        return train_step(
            where, self, input, (self.weight, self.bias), buffers=buffers, recipe=recipe
        )

    def reset_running_stats(self) -> None:
        """As in torch; the reference starts anew too."""
        super().reset_running_stats()
        # torch's constructor calls this too; a frozen layer keeps what it has
        if "renorm" in self.__dict__ and self._thaw is None:
            reset_renorm_buffers(self)

    def extra_repr(self) -> str:
        """As the plain layer, with the limits."""
        r = self.renorm
        return (
            f"{super().extra_repr()}, limits={r.limits}, renorm_momentum={r.ema_weight}, "
            f"rule={r.rule}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        convert = super()._apply
        converted_widely(self, renorm_names(self.renorm.rule), lambda: convert(fn, recurse))
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        convert = super()._load_from_state_dict
        names = renorm_names(self.renorm.rule)
        converted_widely(self, names, lambda: convert(*args, **kwargs))
        seed_renorm_buffers(self, *args)


class BatchRenorm2d(_Renorm, BatchNorm2d):
    """Batch renormalization (Ioffe 2017) over `(N, C, H, W)`; for small or unlike batches.

    Training gives `y = ((x - mean) / stddev * r + d) * weight + bias` with

        r = clip(stddev / reference stddev, rmin, rmax)
        d = clip((mean - reference mean) / reference stddev, -dmax, dmax)

    where `stddev = sqrt(var + eps)` of the batch, and `r` and `d`, taken from the statistics
    before this batch, are constants for the gradient. Unclipped, that is inference by the
    reference, so that training sees what inference will compute. Inference is plain batch norm.

    The two rules for the reference and the running statistics are those of TensorFlow: see
    `bnkit.core.renorm`. Both store the variance without Bessel's correction. A state_dict of a
    plain batch norm loads: the reference then starts at its running statistics.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Weight of the new batch in what inference reads; None = cumulative average.
            0.01 as in the paper and in TensorFlow, where it is written 0.99.
        affine: Learn a weight and a bias.
        track_running_stats: Must be True.
        device: Device of parameters and buffers.
        dtype: Dtype of the parameters; statistics are never narrower than float32.
        bias: Learn a bias, where `affine`.
        on_nonfinite: As in `BatchNorm2d`.
        limits: Bounds of r and d: `RenormLimits(rmin=, rmax=, dmax=)`, where a missing one is no
            bound, or `RenormSchedule(...)`, by default the paper's: 5000 batches of plain batch
            norm, then rmax to 3 and dmax to 5. A mapping as TensorFlow's `renorm_clipping` will
            do, and any object with `at(batches)` that returns limits.
        renorm_momentum: Weight of the new batch in the reference; None = `momentum`.
        rule: `"plain"` (TensorFlow from 1.15 on, Keras from 3.14 on, the paper) or `"debiased"`
            (TensorFlow up to 1.14).

    Raises:
        SpecError: No running statistics; limits out of order; an unknown rule.
        InputError: As in `BatchNorm2d`; complex input.

    Example:
        >>> import torch, bnkit
        >>> from bnkit.core import RenormLimits
        >>> layer = bnkit.nn.BatchRenorm2d(3, limits=RenormLimits())
        >>> x = torch.randn(2, 3, 4, 4)
        >>> before = layer.eval()(x)
        >>> torch.allclose(layer.train()(x), before, atol=1e-4)  # no bounds: training is inference
        True
    """


class BatchRenorm1d(_Renorm, BatchNorm1d):
    """Batch renormalization over `(N, C)` or `(N, C, L)`; otherwise as `BatchRenorm2d`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchRenorm1d(2)  # the paper's schedule starts as plain batch norm
        >>> x = torch.randn(6, 2)
        >>> torch.allclose(layer(x), torch.nn.BatchNorm1d(2)(x), atol=1e-5)
        True
    """


class BatchRenorm3d(_Renorm, BatchNorm3d):
    """Batch renormalization over `(N, C, D, H, W)`; otherwise as `BatchRenorm2d`."""

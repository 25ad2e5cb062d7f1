"""`BatchNorm`: the one layer with the arguments of `tf.layers.batch_normalization`."""

import warnings
from collections.abc import Callable
from typing import Any, Literal, Self

import array_api_compat.torch as xp
import torch
from torch import Tensor

from bnkit import ops
from bnkit.core import (
    EmptyBatchWarning,
    GhostOrder,
    GhostRemainder,
    GhostRunning,
    RenormRule,
    upcast,
)
from bnkit.nn.axis.axis_state import STATISTICS, AxisState
from bnkit.nn.axis.batch_norm_options import check_options, has_fused_kernel
from bnkit.nn.axis.channel_axes import ChannelAxes, channel_axes
from bnkit.nn.axis.parameter_rules import Constraint, Initializer, Regularizer
from bnkit.nn.axis.plain_twin import plain_of
from bnkit.nn.axis.tf_arguments import refuse_arguments, translated
from bnkit.nn.checks import check_batch, check_eval_eps, check_policy, check_tensors
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.layers.recipe import Ghost, Recipe, Renorm, Where, train_step
from bnkit.nn.layers.renorm_buffers import flat_buffers, renorm_buffers
from bnkit.nn.layers.renorm_limits import renorm_limits
from bnkit.nn.layers.variant import refuse_complex
from bnkit.nn.naming import qualified_name
from bnkit.ops import NonFinitePolicy, RenormBuffers, StatisticsBuffers

Adjustment = Callable[[tuple[int, ...]], tuple[Tensor | float, Tensor | float]]


class BatchNorm(AxisState):
    """Batch norm over any axes, with every argument of `tf.layers.batch_normalization`.

    `BatchNorm(...)` takes them in the words and with the defaults of PyTorch,
    `BatchNorm.from_tf(...)` in those of TensorFlow. What cannot be taken is refused with the
    reason: `training` (`train()` and `eval()` say that), `reuse` (call the layer again), `fused`
    (see `running_correction`), `inputs` (call the layer).

    Unlike `BatchNorm1d/2d/3d` this is no `torch.nn.BatchNorm`: tools that look for those assume
    that the channels are dimension 1. Where they are, `plain(ndim)` gives such a layer.

    Args:
        num_features: Channels; one number per axis where there are several.
        axis: The channel axis, or several; all others are averaged over.
        momentum: Weight of the new batch; None = cumulative average. TensorFlow's 0.99 is 0.01.
        eps: Added to the variance, inside the square root.
        center: Learn a bias.
        scale: Learn a weight.
        bias_initializer: `"zeros"`, `"ones"`, a number, or a function that changes a tensor in
            place, such as those of `torch.nn.init`; so are the other three.
        weight_initializer: First weight.
        running_mean_initializer: First running mean.
        running_var_initializer: First running variance.
        bias_regularizer: Function of the bias; `bnkit.nn.regularization_loss(model)` sums them.
        weight_regularizer: Function of the weight.
        bias_constraint: Projection of the bias; `bnkit.nn.constrain_after(optimizer, model)`
            applies it after every step.
        weight_constraint: Projection of the weight.
        trainable: Learn, and average statistics; it can be set on the layer later.
        name: Stands at the head of error messages.
        renorm: Batch renormalization, as in `BatchRenorm2d`.
        renorm_clipping: Limits of r and d: a mapping with `rmin`, `rmax`, `dmax`, where a missing
            key is no bound, or limits as in `BatchRenorm2d`; None = no bounds.
        renorm_momentum: Weight of the new batch in the reference; None = `momentum`.
        renorm_rule: `"plain"` (TensorFlow from 1.15 on) or `"debiased"` (up to 1.14).
        virtual_batch_size: Ghost batch norm, as in `GhostBatchNorm2d`.
        ghost_groups: Which samples are a group; TensorFlow's are strided.
        ghost_running: What of the groups is averaged; TensorFlow's is their mean.
        ghost_remainder: What to do with a batch that does not divide.
        adjustment: `adjustment(shape of the input) -> (s, t)`, in training only:
            `y = (xhat * s + t) * weight + bias`.
        correction: Subtracted from the count in the variance that normalizes in training; see
            `bnkit.core.corrected`.
        running_correction: The same for the variance that is stored: 1, 0, or `"fused"` for
            TensorFlow's habit, 1 where its fused kernel runs (4-D and 5-D, channels second or
            last, not float64, nothing of the above) and 0 elsewhere. With `renorm` always 0.
        frozen_normalizes_with: What a layer in training mode that is not trainable normalizes
            with: `"running"`, as Keras since 2.0 and tf.keras 2 do, or `"batch"`, as tf.layers.
        on_nonfinite: As in `BatchNorm2d`.
        device: Device of parameters and buffers.
        dtype: Dtype of the parameters; statistics are never narrower than float32.
        **refused: Named in the error.

    Raises:
        SpecError: An argument that is not taken, or out of range, or that excludes another:
            `adjustment` with `virtual_batch_size`, `virtual_batch_size` with axis 0,
            `correction` with `renorm`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.BatchNorm(3, axis=-1, scale=False)
        >>> tuple(layer(torch.randn(8, 5, 5, 3)).shape), layer.weight is None
        ((8, 5, 5, 3), True)
        >>> bnkit.nn.BatchNorm(3, epsilon=1e-3)
        Traceback (most recent call last):
        ...
        bnkit.core.errors.SpecError: BatchNorm: epsilon=0.001 is not taken: here it is called eps...
        >>> bnkit.nn.BatchNorm.from_tf(3, epsilon=1e-2, momentum=0.9).eps
        0.01
    """

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        axis: int | tuple[int, ...] = 1,
        *,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        bias_initializer: Initializer = "zeros",
        weight_initializer: Initializer = "ones",
        running_mean_initializer: Initializer = "zeros",
        running_var_initializer: Initializer = "ones",
        bias_regularizer: Regularizer | None = None,
        weight_regularizer: Regularizer | None = None,
        bias_constraint: Constraint | None = None,
        weight_constraint: Constraint | None = None,
        trainable: bool = True,
        name: str | None = None,
        renorm: bool = False,
        renorm_clipping: Any = None,
        renorm_momentum: float | None = None,
        renorm_rule: RenormRule = "plain",
        virtual_batch_size: int | None = None,
        ghost_groups: GhostOrder = "strided",
        ghost_running: GhostRunning = "mean",
        ghost_remainder: GhostRemainder = "error",
        adjustment: Adjustment | None = None,
        correction: float = 0,
        running_correction: Literal[0, 1, "fused"] = 1,
        frozen_normalizes_with: Literal["running", "batch"] = "running",
        on_nonfinite: NonFinitePolicy = "skip",
        device: Any = None,
        dtype: torch.dtype | None = None,
        **refused: Any,
    ) -> None:
        super().__init__()
        refuse_arguments("BatchNorm", refused)
        check_policy(lambda: "BatchNorm", on_nonfinite)
        self.name, self.eps, self.momentum = name, eps, momentum
        self.num_features = (num_features,) if isinstance(num_features, int) else num_features
        self.axis = (axis,) if isinstance(axis, int | str) else tuple(axis)
        self.initializers = {
            "weight": weight_initializer,
            "bias": bias_initializer,
            "running_mean": running_mean_initializer,
            "running_var": running_var_initializer,
        }
        self.regularizers = {"weight": weight_regularizer, "bias": bias_regularizer}
        self.constraints = {"weight": weight_constraint, "bias": bias_constraint}
        self.ghost = self.renorm = None
        if virtual_batch_size is not None:
            self.ghost = Ghost(
                virtual_batch_size=virtual_batch_size,
                groups=ghost_groups,
                running=ghost_running,
                remainder=ghost_remainder,
            )
        if renorm:
            self.renorm = Renorm(
                limits=renorm_limits("BatchNorm", renorm_clipping),
                ema_weight=renorm_momentum,
                rule=renorm_rule,
            )
        self.adjustment, self.correction = adjustment, correction
        self.running_correction = running_correction
        self.frozen_normalizes_with = frozen_normalizes_with
        self.on_nonfinite: NonFinitePolicy = on_nonfinite
        check_options(self)
        self._create({"weight": scale, "bias": center}, device, dtype)
        self.trainable = trainable

    @classmethod
    def from_tf(
        cls,
        num_features: int | tuple[int, ...],
        *,
        renorm_rule: RenormRule = "plain",
        device: Any = None,
        dtype: torch.dtype | None = None,
        **arguments: Any,
    ) -> Self:
        """The layer that `tf.layers.batch_normalization(inputs, **arguments)` makes.

        Names, defaults and meanings are TensorFlow's: `axis=-1`, `momentum=0.99` weighs the old
        average, `epsilon=1e-3`, the variance is stored with Bessel's correction where the fused
        kernel runs, ghost batches are strided, and a layer that is not `trainable` goes on
        normalizing with the batch. Initializers are those of `BatchNorm`.

        Args:
            num_features: Channels; TensorFlow takes them from its input.
            renorm_rule: `"debiased"` for TensorFlow up to 1.14.
            device: Device of parameters and buffers.
            dtype: Dtype of the parameters.
            **arguments: TensorFlow's, but for `inputs`, `training` and `reuse`.

        Returns:
            The layer, in training mode; TensorFlow's default is `training=False`.

        Raises:
            SpecError: An argument that is not taken, with the reason.
        """
        ours = translated("BatchNorm.from_tf", arguments)
        return cls(num_features, **ours, renorm_rule=renorm_rule, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize; in training also average the batch into the running statistics."""
        where = self._where
        if not isinstance(input, Tensor):
            return BatchNormBase._as_leaf(self, where, input, None)  # pyright: ignore
        channels = channel_axes(where, input, self.axis, self.num_features)
        x = channels.second(input)
        flat = {n: _flat(getattr(self, n)) for n in ("weight", "bias", *STATISTICS)}
        check_tensors(where, x, flat)
        affine = flat["weight"], flat["bias"]
        if not self._normalizes_with_the_batch():
            check_eval_eps(where, self.eps)
            statistics: Any = flat["running_mean"], flat["running_var"]
            return channels.back(ops.batch_norm_eval(x, statistics, *affine, self.eps), input)
        if x.numel() == 0:
            _warn_empty(where, input)
            return input.clone()
        check_batch(where, x, self.eps)
        buffers = self._buffers_of(where, x)
        recipe = self._recipe(input)
        if self.adjustment is None:
            y = channels.back(
                train_step(where, self, x, affine, buffers=buffers, recipe=recipe), input
            )
        else:
            xhat = train_step(where, self, x, (None, None), buffers=buffers, recipe=recipe)
            y = self._adjusted(channels.back(xhat, input), channels)
        if input.device.type == "cpu" and not torch.compiler.is_compiling():
            self._report_nonfinite(where)
        return y

    def plain(self, ndim: int) -> BatchNorm1d | BatchNorm2d | BatchNorm3d:
        """The plain batch norm of the same inference, for input of so many dimensions.

        It shares parameters and statistics with this layer. Training is the same too where the
        arguments are those that the plain layer has. A weight that is missing beside a bias is
        a weight of 1 that is not learned.

        Args:
            ndim: 2 to 5.

        Returns:
            A drop-in for `torch.nn`.

        Raises:
            ConversionError: The channels of such input are not dimension 1.
        """
        return plain_of(self, ndim)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  the signature of torch
        """Set the mode; also reports batches that were left out on a GPU."""
        self._report_nonfinite(self._where)
        return super().train(mode)

    def extra_repr(self) -> str:
        """What was asked for, where it is not the default."""
        single = len(self.axis) == 1
        shown = {
            "axis": self.axis[0] if single else self.axis,
            "momentum": self.momentum,
            "eps": self.eps,
            "ghost": self.ghost,
            "renorm": self.renorm,
            "correction": self.correction or None,
            "adjustment": self.adjustment,
            "name": self.name,
        }
        kept = (f"{k}={v}" for k, v in shown.items() if v is not None or k == "momentum")
        missing = "".join(f", {n}=None" for n in ("weight", "bias") if getattr(self, n) is None)
        features = self.num_features[0] if single else self.num_features
        return f"{features}, {', '.join(kept)}{missing}"

    # how NaN and infinity are counted and reported does not depend on where the channels are
    _left_out = BatchNormBase._left_out
    _report_nonfinite = BatchNormBase._report_nonfinite

    def _normalizes_with_the_batch(self) -> bool:
        stopped = not self.trainable and self.frozen_normalizes_with == "running"
        return self.training and self._policy.normalize == "batch" and not stopped

    def _where(self) -> str:
        named = qualified_name(self)
        return named if self.name is None else f"{self.name!r}, {named}"

    def _buffers_of(self, where: Where, x: Tensor) -> StatisticsBuffers | RenormBuffers:
        left_out = self._left_out(x)  # pyright: ignore[reportArgumentType]
        if self.renorm is not None:
            refuse_complex(where, x, "batch renormalization")
            return flat_buffers(renorm_buffers(self, left_out))
        mean, var = _flat(self.running_mean), _flat(self.running_var)
        return StatisticsBuffers(mean, var, self.num_batches_tracked, left_out)

    def _recipe(self, input: Tensor) -> Recipe:
        given = self.running_correction
        stored = int(has_fused_kernel(self, input)) if isinstance(given, str) else given
        return Recipe(
            eps=self.eps,
            ema_weight=self.momentum,
            ghost=self.ghost,
            renorm=self.renorm,
            correction=self.correction,
            running_correction=stored,
            on_nonfinite=self.on_nonfinite,
            updates=self.trainable and self._policy.counts(),
        )

    def _adjusted(self, xhat: Tensor, channels: ChannelAxes) -> Tensor:
        """`(xhat * s + t) * weight + bias`, in the dtype of `xhat`."""
        s, t = self.adjustment(tuple(xhat.shape))  # pyright: ignore[reportOptionalCall]
        y = upcast(xp, xhat) * s + t
        y = y if self.weight is None else y * channels.spread(self.weight)
        y = y if self.bias is None else y + channels.spread(self.bias)
        return y.to(xhat.dtype)


def _flat(v: Tensor | None) -> Tensor | None:
    return v if v is None or v.ndim == 1 else v.flatten()


def _warn_empty(where: Where, x: Tensor) -> None:
    message = (
        f"{where()}: the batch is empty (input of shape {tuple(x.shape)}); the running "
        "statistics and their counter are left alone."
    )
    warnings.warn(message, EmptyBatchWarning, stacklevel=3)

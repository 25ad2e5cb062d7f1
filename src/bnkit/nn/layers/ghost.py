"""Ghost batch norm: a large batch, normalized in groups."""

from typing import Any

from torch import Tensor

from bnkit.core import GhostOrder, GhostRemainder, GhostRunning
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.layers.recipe import Ghost, Recipe, Where, train_step
from bnkit.nn.layers.variant import Variant
from bnkit.ops import StatisticsBuffers


class _Ghost(Variant):
    """Adds the division into groups; the state_dict is that of the plain batch norm."""

    added = ("ghost",)
    alone = "its groups are parts of the batch of one process, and normalized alone"
    ghost: Ghost

    def __init__(
        self,
        *args: Any,
        virtual_batch_size: int,
        groups: GhostOrder = "contiguous",
        running: GhostRunning = "mean",
        remainder: GhostRemainder = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._divide(
            Ghost(
                virtual_batch_size=virtual_batch_size,
                groups=groups,
                running=running,
                remainder=remainder,
            )
        )

    def _divide(self, ghost: Ghost) -> None:
        ghost.check(type(self).__name__)
        self.ghost = ghost

    def _train_step(self, where: Where, input: Tensor) -> Tensor:
        buffers = None
        if self._tracks:
            buffers = StatisticsBuffers(
                self.running_mean,
                self.running_var,
                self.num_batches_tracked,
                self._left_out(input),
            )
        recipe = Recipe(
            eps=self.eps,
            ema_weight=self._ema_weight,
            ghost=self.ghost,
            on_nonfinite=self.on_nonfinite,
        )
        return train_step(
            where, self, input, (self.weight, self.bias), buffers=buffers, recipe=recipe
        )

    def extra_repr(self) -> str:
        """As the plain layer, with the groups."""
        g = self.ghost
        return (
            f"{super().extra_repr()}, virtual_batch_size={g.virtual_batch_size}, "
            f"groups={g.groups}, running={g.running}, remainder={g.remainder}"
        )


class GhostBatchNorm2d(_Ghost, BatchNorm2d):
    """Batch norm of groups of `virtual_batch_size` samples (Hoffer et al. 2017), `(N, C, H, W)`.

    Training normalizes every group by its own statistics, so that a large batch keeps the noise
    of a small one; one group is plain batch norm. Inference is plain batch norm and takes any
    batch. Otherwise as `BatchNorm2d`, with the same state_dict.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Weight of the new batch in the running statistics; None = cumulative average.
        affine: Learn a weight and a bias, shared by the groups.
        track_running_stats: Keep running statistics; without them eval normalizes the batch as
            one group.
        device: Device of parameters and buffers.
        dtype: Dtype of the parameters.
        bias: Learn a bias, where `affine`.
        on_nonfinite: As in `BatchNorm2d`.
        virtual_batch_size: Samples in a group.
        groups: `"contiguous"` groups neighbours, as tabnet and composer do; `"strided"` gives
            group g the samples g, g + G, g + 2 G, ... of G groups, as TensorFlow does.
        running: What enters the running statistics: `"mean"`, once, the mean of the groups'
            means and variances (TensorFlow, which stores them without Bessel's correction);
            `"sequential"`, group after group as if they were batches, so that the weight of a
            batch is 1 - (1 - momentum)^G (tabnet); `"total"`, once, the whole batch.
        remainder: What to do where the groups do not fill the batch: `"error"`; `"smaller"`, one
            smaller group; `"plain"`, the batch as one group.

    Raises:
        SpecError: A size or a choice that is none.
        InputError: As in `BatchNorm2d`; a batch that does not divide, with `remainder="error"`;
            a group of one value per channel.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.GhostBatchNorm2d(3, virtual_batch_size=4)
        >>> x = torch.randn(8, 3, 5, 5)
        >>> first = torch.nn.BatchNorm2d(3)(x[:4])
        >>> torch.allclose(layer(x)[:4], first, atol=1e-5)
        True
    """


class GhostBatchNorm1d(_Ghost, BatchNorm1d):
    """Ghost batch norm over `(N, C)` or `(N, C, L)`; otherwise as `GhostBatchNorm2d`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.GhostBatchNorm1d(3, virtual_batch_size=4)
        >>> layer(torch.randn(6, 3))
        Traceback (most recent call last):
        ...
        bnkit.core.errors.InputError: GhostBatchNorm1d: expected a batch that ...
    """


class GhostBatchNorm3d(_Ghost, BatchNorm3d):
    """Ghost batch norm over `(N, C, D, H, W)`; otherwise as `GhostBatchNorm2d`."""

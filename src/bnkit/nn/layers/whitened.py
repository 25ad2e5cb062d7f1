"""Whitening batch norm: channels that are decorrelated, not only scaled."""

import warnings
from functools import partial
from typing import Any, ClassVar, Self

import array_api_compat.torch as xp
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bnkit.core import (
    ConversionError,
    EmptyBatchWarning,
    InputError,
    Moments,
    NonFiniteWarning,
    Whitening,
    check_whitening,
    upcast,
)
from bnkit.nn.checks import check_finite, check_policy, check_rank, check_tensors, check_train_eps
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.layers.recipe import Where
from bnkit.nn.layers.variant import refuse_complex
from bnkit.nn.naming import qualified_name
from bnkit.nn.statistics.statistics_policy import WithPolicy
from bnkit.nn.statistics.wide import converted_widely
from bnkit.ops import NonFinitePolicy, commit_by
from bnkit.ops.plain import is_plain
from bnkit.ops.whitening import by_group, from_groups, grouped_covariance, whitening_matrix

Values = Float[Tensor, "n c *spatial"]
_STATISTICS = ("running_mean", "running_whitening")


class _State(nn.Module):
    """Parameters and buffers of a whitening batch norm."""

    num_features: int
    track_running_stats: bool
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_whitening: Tensor | None
    num_batches_tracked: Tensor | None

    def _create(self, groups: int, learned: dict[str, bool], device: Any, dtype: Any) -> None:
        for name, wanted in learned.items():
            empty = torch.empty(self.num_features, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty) if wanted else None)
        tracks, width = self.track_running_stats, self.num_features // groups
        wide = torch.promote_types(torch.empty((), dtype=dtype).dtype, torch.float32)
        shapes = (self.num_features,), (groups, width, width)
        for name, shape in zip(_STATISTICS, shapes, strict=True):
            empty = torch.empty(shape, device=device, dtype=wide) if tracks else None
            self.register_buffer(name, empty)
        counter = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", counter if tracks else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Mean 0, whitening by the identity, no batch counted."""
        if self.running_mean is None or self.running_whitening is None:
            return
        self.running_mean.zero_()
        self.running_whitening.zero_().diagonal(dim1=1, dim2=2).fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """As `reset_running_stats`, and weight 1, bias 0."""
        self.reset_running_stats()
        for parameter, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        convert = super()._apply
        converted_widely(self, _STATISTICS, lambda: convert(fn, recurse))
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        convert = super()._load_from_state_dict
        converted_widely(self, _STATISTICS, lambda: convert(*args, **kwargs))


class Whitened(WithPolicy, _State):
    """Forward pass and conversions; the dimensions are in the subclasses."""

    ranks: ClassVar[tuple[int, ...]]
    plain_class: ClassVar[Any]
    alone = "its covariance is that of the batch of one process"
    at_once = "its whitening matrix is averaged batch by batch"
    not_exchanged = "has a whitening matrix, which would be lost"
    not_plain = "whitening is no scale per channel; to_batch_norm() says when it is one"

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
        groups: int = 1,
        method: Whitening = "newton",
        iterations: int = 5,
        bias: bool = True,
        on_nonfinite: NonFinitePolicy = "skip",
    ) -> None:
        super().__init__()
        where = type(self).__name__
        check_whitening(where, num_features, groups, method=method, iterations=iterations)
        check_policy(lambda: where, on_nonfinite)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.groups, self.iterations = groups, iterations
        self.method: Whitening = method
        self.on_nonfinite: NonFinitePolicy = on_nonfinite
        self.warned = False
        learned = {"weight": affine, "bias": affine and bias}
        self._create(groups, learned, device, dtype)

    def forward(self, input: Values) -> Values:
        """Whiten, then scale and shift; in training also average the batch in."""
        where = partial(qualified_name, self)
        if not isinstance(input, Tensor):
            return BatchNormBase._as_leaf(self, where, input, None)  # pyright: ignore
        self._check(where, input)
        training = self.training and self._policy.normalize == "batch"
        by_batch = training or self.running_mean is None
        with torch.autocast(input.device.type, enabled=False):
            if by_batch and input.numel():
                self._check_count(where, input)
                whitened, mean, matrix = self._by_batch(input)
                if training and self.track_running_stats and self._policy.counts():
                    self._commit(where, mean.detach(), matrix.detach())
            else:
                self._warn_empty(where, input, training=training)
                whitened = self._by_running(input)
            y = from_groups(whitened, input)
            shape = (1, -1, *(1,) * (input.ndim - 2))
            y = y if self.weight is None else y * self.weight.reshape(shape)
            y = y if self.bias is None else y + self.bias.reshape(shape)
            return y.to(input.dtype)

    def _by_batch(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, deviations, covariance = grouped_covariance(x, self.groups)
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=x.device)
        matrix = whitening_matrix(covariance + self.eps * eye, self.method, self.iterations)
        return matrix @ deviations, mean, matrix

    def _by_running(self, x: Tensor) -> Tensor:
        mean, matrix = self.running_mean, self.running_whitening
        values = by_group(upcast(xp, x), self.groups)
        if mean is None or matrix is None:
            return values  # an empty batch of a layer without statistics
        return matrix.to(values.dtype) @ (
            values - mean.to(values.dtype).reshape(self.groups, -1, 1)
        )

    def _commit(self, where: Where, mean: Tensor, matrix: Tensor) -> None:
        """Average a batch in, inside transforms of `torch.func` too."""
        tensors = self.running_mean, self.running_whitening, self.num_batches_tracked
        if any(t is None for t in tensors):
            return
        batch: Any = Moments(1, mean, matrix)
        if torch._C._functorch.is_batchedtensor(mean):  # pyright: ignore
            self._average(batch, tensors)  # slices have buffers of their own, or torch refuses
            return
        commit_by(self._average, batch, tensors)  # pyright: ignore[reportArgumentType]
        plain = not torch.compiler.is_compiling() and is_plain((mean, matrix))
        if plain and not bool(mean.isfinite().all() & matrix.isfinite().all()):
            self._report(where)

    def _average(self, batch: Any, tensors: tuple[Any, ...]) -> None:
        """`running = (1 - w) running + w batch`, unless the batch is not finite."""
        _, mean, matrix = batch
        running_mean, running_matrix, counter = tensors
        finite = mean.isfinite().all() & matrix.isfinite().all()
        counts = torch.ones_like(finite) if self.on_nonfinite == "propagate" else finite
        counter.add_(counts.to(counter.dtype))
        count = counter.clamp(min=1).to(running_mean.dtype)
        weight = 1.0 / count if self.momentum is None else self.momentum
        for running, new in ((running_mean, mean), (running_matrix, matrix)):
            blended = (1 - weight) * running + weight * new.to(running.dtype)
            running.copy_(torch.where(counts, blended, running))

    def _report(self, where: Where) -> None:
        if self.on_nonfinite == "raise":
            check_finite(where, torch.full((1,), float("nan")), torch.ones(1))
        if self.on_nonfinite == "skip" and not self.warned:
            self.warned = True
            message = (
                f"{where()}: NaN or infinity in a batch; it did not enter the running statistics. "
                "Find where it overflows, e.g. with torch.autograd.detect_anomaly()."
            )
            warnings.warn(message, NonFiniteWarning, stacklevel=4)

    def _check(self, where: Where, x: Tensor) -> None:
        check_rank(where, x, self.ranks)
        refuse_complex(where, x, "whitening")
        named = {"running_mean": self.running_mean, "weight": self.weight, "bias": self.bias}
        check_tensors(where, x, named)
        if x.shape[1] != self.num_features:
            msg = (
                f"{where()}: expected {self.num_features} channels, got input of shape "
                f"{tuple(x.shape)}. Set num_features={x.shape[1]}, or check the layer before."
            )
            raise InputError(msg)
        check_train_eps(where, self.eps)

    def _check_count(self, where: Where, x: Tensor) -> None:
        values, width = x.numel() // x.shape[1], self.num_features // self.groups
        if values <= width:
            msg = (
                f"{where()}: expected more than {width} values per channel, the channels of a "
                f"group, got {values} in input of shape {tuple(x.shape)}: their covariance has no "
                "inverse. Use a larger batch or more groups, or call .eval() if this is inference."
            )
            raise InputError(msg)

    def _warn_empty(self, where: Where, x: Tensor, *, training: bool) -> None:
        if training and not x.numel():
            message = (
                f"{where()}: the batch is empty (input of shape {tuple(x.shape)}); the running "
                "statistics and their counter are left alone."
            )
            warnings.warn(message, EmptyBatchWarning, stacklevel=4)

    @classmethod
    def from_batch_norm(cls, norm: nn.Module, **options: Any) -> Self:
        """A whitening layer with the inference of a batch norm, parameters copied.

        The whitening matrix begins as `diag(1 / sqrt(running_var + eps))`.

        Args:
            norm: A batch norm of torch or bnkit of the same dimension, with statistics.
            **options: `groups`, `method`, `iterations`.

        Returns:
            The layer, in the mode of the other.

        Raises:
            ConversionError: Another layer, or one without running statistics.
        """
        fits = isinstance(norm, getattr(nn, cls.plain_class.__name__))
        var: Any = getattr(norm, "running_var", None)
        if not fits or var is None:
            got = type(norm).__name__ + (" without them" if fits else "")
            msg = (
                f"{cls.__name__}.from_batch_norm: expected a {cls.plain_class.__name__} with "
                f"running statistics, got {got}."
            )
            raise ConversionError(msg)
        n: Any = norm
        dtype = var.dtype if n.weight is None else n.weight.dtype
        where = {"device": var.device, "dtype": dtype, "bias": n.bias is not None}
        new = cls(n.num_features, n.eps, n.momentum, n.affine, **where, **options)
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "num_batches_tracked"):
                if getattr(new, name) is not None:
                    getattr(new, name).copy_(getattr(n, name))
            diagonal = new.running_whitening.diagonal(dim1=1, dim2=2)  # pyright: ignore
            diagonal.copy_((var + n.eps).rsqrt().reshape(new.groups, -1))
        return new.train(n.training)

    def to_batch_norm(self) -> Any:
        """The plain batch norm of the same inference, where there is one.

        That is so while the whitening matrix is diagonal: for groups of one channel, and before
        the first batch. `running_var = 1 / diagonal**2 - eps`.

        Returns:
            A plain layer of bnkit, parameters copied, in the same mode.

        Raises:
            ConversionError: The matrix mixes channels, or there is none.
        """
        matrix = self.running_whitening
        mixes = matrix is not None and bool(
            (matrix - matrix.diagonal(dim1=1, dim2=2).diag_embed()).any()
        )
        if matrix is None or mixes:
            why = "its whitening matrix mixes channels" if mixes else "it has no running statistics"
            msg = (
                f"{qualified_name(self)}.to_batch_norm: expected whitening of each channel alone, "
                f"but {why}. It is a matrix: fold it into the next linear layer, or keep it."
            )
            raise ConversionError(msg)
        where = {
            "device": matrix.device,
            "dtype": None if self.weight is None else self.weight.dtype,
        }
        new = self.plain_class(
            self.num_features,
            self.eps,
            self.momentum,
            self.affine,
            bias=self.bias is not None,
            **where,
        )
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "num_batches_tracked"):
                if getattr(new, name) is not None:
                    getattr(new, name).copy_(getattr(self, name))
            new.running_var.copy_(matrix.diagonal(dim1=1, dim2=2).flatten() ** -2 - self.eps)
        return new.train(self.training)

    def extra_repr(self) -> str:
        """The arguments."""
        text = (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, groups={self.groups}"
        )
        steps = f", iterations={self.iterations}" if self.method == "newton" else ""
        return f"{text}, method={self.method!r}{steps}"


class WhitenedBatchNorm2d(Whitened):
    """Whitening over `(N, C, H, W)`: channels of a group get the identity as covariance.

    With the mean `m` and covariance `S` (divided by the count) of the channels of a group,

        y = weight * W (x - m) + bias,   W = (S + eps I)**(-1/2)

    - `method="zca"`: W by eigenvectors (decorrelated batch norm, Huang et al. 2018,
      arXiv:1804.08450, section 3.2). The gradient is the solution of a Lyapunov equation, which is
      stable where eigenvalues are equal; that of the eigenvectors is not.
    - `method="newton"`: W by `iterations` of Newton's method (IterNorm, Huang et al. 2019,
      arXiv:1904.03441, algorithm 1): matrix products alone; directions of small variance are
      whitened less.

    Inference takes the averages of `m` and of `W`, as both papers do. Groups of one channel are
    plain batch norm, in training to rounding; its inference differs, because plain batch norm
    averages variances (with n - 1), and this 1 / standard deviations.

    It costs matrix products of width `C / groups` per value, three to twelve times the plain layer
    (`bnkit bench family`). A group needs more values than channels, better ten times as many: with
    fewer, W differs so much from batch to batch that its average is of no use.

    Args:
        num_features: Channels C.
        eps: Added to the diagonal of the covariance.
        momentum: Weight of the new batch in the averages; None = cumulative.
        affine: Learn a weight and a bias per channel.
        track_running_stats: Keep averages; without them eval uses the batch too.
        device: Device of parameters and buffers.
        dtype: Dtype of the parameters; averages are never narrower than float32.
        groups: Neighbouring channels are whitened together; must divide C.
        method: `"newton"` or `"zca"`.
        iterations: Of Newton's.
        bias: Learn a bias, where `affine`.
        on_nonfinite: As in `BatchNorm2d`.

    Raises:
        SpecError: Groups, method or iterations that are none.
        InputError: As in `BatchNorm2d`, or no more values per channel than channels in a group.
        NonFiniteError: With `on_nonfinite="raise"`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.WhitenedBatchNorm2d(4, groups=2, method="zca")
        >>> x = torch.randn(8, 4, 5, 5) @ torch.randn(5, 5)
        >>> first = layer(x)[:, :2].transpose(0, 1).flatten(1)
        >>> torch.allclose(first.cov(correction=0), torch.eye(2), atol=1e-3)
        True
    """

    ranks = (4,)
    plain_class = BatchNorm2d


class WhitenedBatchNorm1d(Whitened):
    """As `WhitenedBatchNorm2d`, over `(N, C)` or `(N, C, L)`."""

    ranks = (2, 3)
    plain_class = BatchNorm1d


class WhitenedBatchNorm3d(Whitened):
    """As `WhitenedBatchNorm2d`, over `(N, C, D, H, W)`."""

    ranks = (5,)
    plain_class = BatchNorm3d

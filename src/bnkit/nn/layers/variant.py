"""What ghost batch norm and batch renormalization share: a training step of their own."""

from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bnkit.core import InputError
from bnkit.nn.checks import check_batch, check_rank, check_tensors
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.layers.recipe import Where
from bnkit.nn.naming import qualified_name

Values = Float[Tensor, "n c *spatial"]


class Variant(BatchNormBase):
    """A batch norm whose inference is the plain one, and whose training is not."""

    added: ClassVar[tuple[str, ...]] = ()

    def forward(self, input: Values) -> Values:
        """Normalize; in training by the rule of this layer, in eval as plain batch norm."""
        training = self.training and self._policy.normalize == "batch"
        if not (training and isinstance(input, Tensor)):
            return self._normalize(input)
        where = partial(qualified_name, self)
        check_rank(where, input, self.ranks)
        named = {"running_mean": self.running_mean, "running_var": self.running_var}
        check_tensors(where, input, {**named, "weight": self.weight, "bias": self.bias})
        if input.numel() == 0:
            return self._normalize(input)  # warns, and leaves the statistics alone
        check_batch(where, input, self.eps)
        y = self._train_step(where, input)
        # reading the counter of a GPU would wait for it; there, train() and eval() report
        if input.device.type == "cpu" and not torch.compiler.is_compiling():
            self._report_nonfinite(where)
        return y

    def _train_step(self, where: Where, input: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def _tracks(self) -> bool:
        """Whether this forward pass enters the running statistics."""
        return self.track_running_stats and self._policy.counts()

    @property
    def _ema_weight(self) -> float | None:
        no_counter = self.momentum is None and self.num_batches_tracked is None
        return 0.0 if no_counter else self.momentum

    def _become_plain(self) -> None:
        """Turn into the plain layer, in place; inference stays as it is."""
        for name in self.added:
            self.__dict__.pop(name, None)
            self._buffers.pop(name, None)
        self.__class__ = plain_class(type(self))  # pyright: ignore[reportAttributeAccessIssue]


def plain_class(cls: type) -> type:
    """The plain layer that a variant extends."""
    return next(b for b in cls.__mro__ if b in (BatchNorm1d, BatchNorm2d, BatchNorm3d))


def refuse_complex(where: Where, x: Tensor, what: str) -> None:
    """Raise `InputError` for complex input, which `what` is not defined for."""
    if x.is_complex():
        msg = (
            f"{where()}: expected real input, got {x.dtype}: {what} is not defined for complex "
            "numbers. Use the plain batch norm."
        )
        raise InputError(msg)


def options_of(**given: Any) -> dict[str, Any]:
    """Those options that are not None."""
    return {name: value for name, value in given.items() if value is not None}

"""Monte-Carlo batch norm: predictions under the statistics of random training batches."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

from bnkit.core import InputError, moments, upcast
from bnkit.nn.adapting.stand_in import StandIn, Statistics, adaptable, standing_in
from bnkit.nn.checks import check_batch


class Predictive(NamedTuple):
    """What a model predicts when its statistics are as random as they were in training.

    Attributes:
        samples: One prediction for each draw, shape `(samples, ...)`.
        mean: Their mean.
        std: Their standard deviation, with Bessel's correction; 0 for a single sample.
    """

    samples: Tensor
    mean: Tensor
    std: Tensor


class Bank:
    """The statistics of several mini-batches in every layer of a model.

    Made by `monte_carlo`. A batch gives one mean and one variance to each layer, and a draw takes
    all of them from the same batch: those of a later layer are statistics of what the earlier
    layers make of that very batch when they normalize with its own statistics. Drawn apart, they
    would belong to no forward pass that training has ever computed.

    Attributes:
        layers: Names of the layers that are drawn for.
        kept: Names of the batch norms that are not, with the reason.
        chosen: The batch whose statistics the next forward pass normalizes with; None = the
            running ones.
    """

    def __init__(self, model: nn.Module, layers: dict[str, Any], kept: dict[str, str]) -> None:
        self.layers, self.kept = tuple(layers), kept
        self.chosen: int | None = None
        self._model = model
        self._found: list[dict[str, Statistics]] = []
        self._recording = False

    def __len__(self) -> int:
        return len(self._found)

    def draw(self, generator: torch.Generator | None = None) -> int:
        """Choose a batch at random, with replacement.

        Args:
            generator: On the CPU; None = torch's own.

        Returns:
            Its number.
        """
        self.chosen = int(torch.randint(len(self), (), generator=generator))
        return self.chosen

    def predict(
        self, *args: Any, samples: int = 32, generator: torch.Generator | None = None, **kwargs: Any
    ) -> Predictive:
        """The model's predictions under the statistics of as many drawn batches.

        Args:
            *args: What the model is called with.
            samples: Draws; each costs one forward pass.
            generator: As in `draw`; the result depends on nothing else that is random, unless the
                model itself draws.
            **kwargs: As `args`.

        Returns:
            The samples, their mean and their standard deviation. Average probabilities, not
            logits, for a predictive distribution.

        Raises:
            InputError: No sample asked for, or a model that does not give one tensor.
        """
        if not isinstance(samples, int) or samples < 1:
            msg = f"predict: expected a positive number of samples, got {samples!r}."
            raise InputError(msg)
        before, found = self.chosen, []
        try:
            for _ in range(samples):
                self.draw(generator)
                found.append(self._model(*args, **kwargs))
        finally:
            self.chosen = before
        if not isinstance(found[0], Tensor):
            msg = (
                f"predict: expected a model that gives one tensor, got {type(found[0]).__name__}. "
                "Call bank.draw() and the model yourself."
            )
            raise InputError(msg)
        stacked = torch.stack(found)
        mean = stacked.mean(0)
        std = stacked.std(0) if samples > 1 else torch.zeros_like(mean)
        return Predictive(stacked, mean, std)

    def choose(self, layer: StandIn, x: Tensor) -> Statistics:
        """The statistics that this layer normalizes this input with."""
        if self._recording:
            check_batch(lambda: str(layer), x, layer.module.eps)
            batch = moments(upcast(xp, x), (0, *range(2, x.ndim)), xp=xp)
            found = Statistics(batch.mean, batch.var())
            # of a layer that runs twice, the last call, which is what running statistics keep most
            self._found[-1][layer.name] = found
            return found
        if self.chosen is None:
            return layer.running
        return self._found[self.chosen].get(layer.name, layer.running)

    def record(self, batches: Iterable[Any]) -> None:
        """Add the statistics of batches: each normalized by its own, layer after layer."""
        self._recording = True
        try:
            with torch.no_grad():
                for batch in batches:
                    self._found.append({})
                    self._model(*batch) if isinstance(batch, tuple) else self._model(batch)
                    self._check_finite()
        finally:
            self._recording = False

    def _check_finite(self) -> None:
        for name, statistics in self._found[-1].items():
            if not all(bool(s.isfinite().all()) for s in statistics):
                msg = (
                    f"monte_carlo: {name!r}: NaN or infinity in the statistics of batch "
                    f"{len(self) - 1}. Leave that batch out."
                )
                raise InputError(msg)


@contextmanager
def monte_carlo(
    model: nn.Module, batches: Iterable[Any], *, layers: Collection[str] | None = None
) -> Iterator[Bank]:
    """Within a `with`, a model predicts with the statistics of random training batches.

    Training normalizes with the statistics of a random mini-batch. Keeping that randomness at
    inference gives samples of an approximate predictive distribution (Teye, Azizpour & Smith
    2018, arXiv:1802.06455, algorithm 1): for each sample a batch of the training data is drawn,
    and every layer normalizes with the mean and variance of that batch.

    The batches run through the model once, at the beginning, as in training (each layer
    normalizes with the batch), and two vectors per layer and batch are kept. The size of
    the batches is part of the method: it is that of training, and the larger they are,
    the less the predictions spread. The layers run as in eval mode; call `model.eval()` for the
    rest. Afterwards everything is as before, bit by bit; nothing is written to the model.

    Args:
        model: Any module; torch's and bnkit's batch norms take part, frozen ones do not.
        batches: Inputs of the model, without labels; a tuple is several arguments.
        layers: As in `bnkit.nn.adapted`.

    Yields:
        The bank, whose `predict` gives samples, mean and standard deviation.

    Raises:
        PolicyError: Not a module, no layer that can take part, or an unknown name.
        InputError: No batches, one with NaN or infinity, or one value per channel.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
        >>> with bnkit.nn.monte_carlo(model, torch.randn(20, 8, 3)) as bank:
        ...     found = bank.predict(torch.randn(5, 3), samples=10)
        >>> tuple(found.samples.shape), bool((found.std > 0).all())
        ((10, 5, 4), True)
    """
    found, kept = adaptable(model, "monte_carlo", layers)
    bank = Bank(model, found, kept)
    with standing_in(found, bank.choose):
        bank.record(batches)
        if not len(bank):
            msg = "monte_carlo: expected batches of training data, got none. Pass a list of inputs."
            raise InputError(msg)
        yield bank

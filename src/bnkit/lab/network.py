"""The tutorial's network, for several sets of weights at once."""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bnkit.core import InputError
from bnkit.lab.plain import Record
from bnkit.nn.functional import batch_norm

Activation = Literal["relu", "tanh"]
Init = Literal["normal", "he", "xavier"]

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


@dataclass(frozen=True, slots=True, kw_only=True)
class MofanConfig(Record):
    """The numbers of the tutorial.

    Attributes:
        seed: Seed of the weights.
        data_seed: Seed of the data, which stays the tutorial's whatever the seed of the weights.
        samples: Points; all of them are the batch.
        hidden_layers: Number of hidden layers.
        units: Units in each of them.
        weight_sd: Standard deviation of the first weights.
        bias: First value of every bias.
        eps: Added to the variance.
        lr: Learning rate of gradient descent.
        steps: Training steps.
        record_every: Histograms are taken before every step that this divides.
        cost_every: The cost is taken after every step that this divides.

    Raises:
        InputError: No step after the first would be recorded.
    """

    seed: int = 1
    data_seed: int = 1
    samples: int = 500
    hidden_layers: int = 7
    units: int = 30
    weight_sd: float = 1.0
    bias: float = 0.1
    eps: float = 0.001
    lr: float = 0.001
    steps: int = 251
    record_every: int = 50
    cost_every: int = 5

    def __post_init__(self) -> None:
        if self.steps <= self.record_every:
            msg = (
                f"MofanConfig: steps must be more than record_every = {self.record_every}, so that "
                f"a trained network is recorded, got {self.steps}."
            )
            raise InputError(msg)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths from the input to the output."""
        return (1, *[self.units] * self.hidden_layers, 1)

    @property
    def record_steps(self) -> tuple[int, ...]:
        """Steps before which histograms are taken."""
        return tuple(range(0, self.steps, self.record_every))


def draw_weights(
    config: MofanConfig, seed: int, init: Init = "normal"
) -> list[Float[Tensor, "inputs outputs"]]:
    """The weights of one network, first layer first, from a generator of their own.

    Standard deviation: `weight_sd` for "normal", `sqrt(2 / inputs)` for "he",
    `sqrt(2 / (inputs + outputs))` for "xavier".

    Args:
        config: The shape of the network.
        seed: Seed of the generator.
        init: Scale of the weights.

    Returns:
        One matrix per layer, in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = {
        "normal": lambda _i, _o: config.weight_sd,
        "he": lambda i, _o: sqrt(2 / i),
        "xavier": lambda i, o: sqrt(2 / (i + o)),
    }[init]
    pairs = zip(config.sizes, config.sizes[1:], strict=False)
    return [torch.randn(i, o, generator=generator) * scale(i, o) for i, o in pairs]


class Networks:
    """Several networks of the same shape, trained side by side by batched matrix products.

    Activations have shape (networks, units, samples): batch norm then sees one row per channel.
    The input is normalized too, before anything is recorded; the output layer is not. Statistics
    are those of the batch, and the batch is all the data, so that no average is ever needed.
    """

    def __init__(
        self,
        config: MofanConfig,
        weights: list[list[Tensor]],
        activation: Activation,
        *,
        batch_norm: bool,
    ) -> None:
        """Stack the networks.

        Args:
            config: The shape of all of them.
            weights: The matrices of each network.
            activation: Name of the activation of the hidden layers.
            batch_norm: Normalize the input and every hidden layer before its activation.
        """
        self.config = config
        self.activation = ACTIVATIONS[activation]
        self.batch_norm = batch_norm
        stacked = [torch.stack(layer) for layer in zip(*weights, strict=True)]
        nets = len(weights)
        biases = [torch.full((nets, o, 1), config.bias) for o in config.sizes[1:]]
        widths = config.sizes[:-1] if batch_norm else ()
        scales = [torch.ones(nets, w) for w in widths]
        shifts = [torch.zeros(nets, w) for w in widths]
        self._groups = [stacked, biases, scales, shifts]
        for parameter in self.parameters():
            parameter.requires_grad_()

    def parameters(self) -> list[Tensor]:
        """Weights, biases, scales and shifts, in this order."""
        return [p for group in self._groups for p in group]

    def forward(
        self, x: Float[Tensor, "1 n"]
    ) -> tuple[list[Float[Tensor, "networks units n"]], Float[Tensor, "networks 1 n"]]:
        """Inputs of all layers (the last one's included) and the prediction.

        Args:
            x: The data, samples last.

        Returns:
            The normalized input and the activation of every hidden layer; the prediction.
        """
        weights, biases, *_ = self._groups
        nets = weights[0].shape[0]
        layer_inputs = [self._normalize(x.expand(nets, -1, -1), 0)]
        hidden = zip(weights[:-1], biases[:-1], strict=True)
        for number, (weight, bias) in enumerate(hidden, start=1):
            z = self._normalize(weight.mT @ layer_inputs[-1] + bias, number)
            layer_inputs.append(self.activation(z))
        return layer_inputs, weights[-1].mT @ layer_inputs[-1] + biases[-1]

    def cost(self, x: Float[Tensor, "1 n"], y: Float[Tensor, "1 n"]) -> Float[Tensor, " networks"]:
        """Mean squared error of each network."""
        return (y - self.forward(x)[1]).square().sum(dim=1).mean(dim=1)

    def step(
        self, x: Float[Tensor, "1 n"], y: Float[Tensor, "1 n"], lr: Float[Tensor, " networks"]
    ) -> None:
        """One step of gradient descent on all the data; networks do not influence each other.

        Args:
            x: Inputs, samples last.
            y: Targets, samples last.
            lr: Learning rate of each network.
        """
        parameters = self.parameters()
        gradients = torch.autograd.grad(self.cost(x, y).sum(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= gradient * lr.view(-1, *[1] * (gradient.ndim - 1))

    def lost(self) -> Tensor:
        """True for each network with a NaN or an infinity in its parameters: it cannot recover."""
        finite = [p.detach().flatten(1).isfinite().all(dim=1) for p in self.parameters()]
        return ~torch.stack(finite).all(dim=0)

    def keep(self, which: Tensor) -> None:
        """Drop the networks where `which` is False."""
        self._groups = [
            [p.detach()[which].requires_grad_() for p in group] for group in self._groups
        ]

    def _normalize(self, z: Tensor, layer: int) -> Tensor:
        if not self.batch_norm:
            return z
        _, _, scales, shifts = self._groups
        rows = z.reshape(1, -1, z.shape[-1])
        scale, shift = scales[layer].flatten(), shifts[layer].flatten()
        out = batch_norm(rows, None, None, scale, shift, training=True, eps=self.config.eps)
        return out.view(z.shape)

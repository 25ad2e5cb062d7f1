"""Who is compared: torch, torch.compile, bnkit, and a plain copy, on the same input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bnkit.nn
from bnkit.bench.results import Missing
from bnkit.bench.shapes import MemoryFormat, Shape
from bnkit.bench.timing import Work
from bnkit.bench.traffic import Direction, Operator

Layer = Callable[..., Tensor]


class Inputs(NamedTuple):
    """The tensors of one comparison; `residual` is None where nothing is added."""

    x: Tensor
    residual: Tensor | None
    grad_y: Tensor

    @property
    def given(self) -> tuple[Tensor, ...]:
        """What the layer is called with."""
        return (self.x,) if self.residual is None else (self.x, self.residual)


class TorchBlock(nn.Module):
    """Batch norm, addition and ReLU as torchvision writes them: in place where that is allowed."""

    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.bn = bn

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`relu(bn(x) + residual)`."""
        y = self.bn(x)
        if residual is not None:
            y += residual
        return torch.relu_(y)


@dataclass(frozen=True)
class Layers:
    """How a batch norm is made.

    Attributes:
        plain: `plain(c, d)`: batch norm for inputs of d dimensions.
        block: `block(c, d)`: batch norm, addition of a second argument, ReLU.
    """

    plain: Callable[[int, int], nn.Module]
    block: Callable[[int, int], nn.Module]

    def layer(self, operator: Operator, c: int, dimensions: int) -> nn.Module:
        """The layer that computes an operator."""
        make = self.plain if operator == "bn" else self.block
        return make(c, dimensions)


def _torch_plain(c: int, dimensions: int) -> nn.Module:
    return (nn.BatchNorm1d if dimensions == 2 else nn.BatchNorm2d)(c)


def _torch_block(c: int, dimensions: int) -> nn.Module:
    return TorchBlock(_torch_plain(c, dimensions))


def _bnkit_plain(c: int, dimensions: int) -> nn.Module:
    return (bnkit.nn.BatchNorm1d if dimensions == 2 else bnkit.nn.BatchNorm2d)(c)


def _bnkit_block(c: int, dimensions: int) -> nn.Module:
    cls = bnkit.nn.BatchNormAct1d if dimensions == 2 else bnkit.nn.BatchNormAct2d
    return cls(c, act="relu")


TORCH = Layers(_torch_plain, _torch_block)
BNKIT = Layers(_bnkit_plain, _bnkit_block)


def make_inputs(
    shape: Shape, memory_format: MemoryFormat, operator: Operator, *, mean: float = 0.0
) -> Inputs:
    """Normal values with standard deviation 1, the same for everyone.

    Args:
        shape: Sizes of the input.
        memory_format: How all of them lie in memory.
        operator: Whether a residual is needed.
        mean: Mean of x.

    Returns:
        The tensors, in float32.
    """
    generator = torch.Generator().manual_seed(sum(shape.sizes))
    layout = getattr(
        torch, f"{memory_format}_format" if memory_format == "contiguous" else memory_format
    )

    def normal(shift: float = 0.0) -> Tensor:
        values = torch.randn(shape.sizes, generator=generator) + shift
        return values.contiguous(memory_format=layout)

    x, grad_y = normal(mean), normal()
    residual = normal() if operator == "bn_add_relu" else None
    for tensor in (x, residual):
        if tensor is not None:
            tensor.requires_grad_()
    return Inputs(x, residual, grad_y)


def with_parameters(layer: nn.Module) -> nn.Module:
    """Give a layer weights and biases that are not 1 and 0; equal ones for equal sizes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values * 0.2 + (1.0 if name.endswith("weight") else 0.0))
    return layer


def work_of(layer: Layer, parameters: list[Tensor], inputs: Inputs, direction: Direction) -> Work:
    """What is timed for one layer and one direction.

    Args:
        layer: A module in the right mode, or what was compiled from one.
        parameters: Its weights.
        inputs: What it is called with.
        direction: Which pass.

    Returns:
        The work; the backward pass has a forward pass outside of the time before it.
    """
    given, wanted = inputs.given, (*inputs.given, *parameters)
    grad = torch.autograd.grad

    def forward() -> Tensor:
        return layer(*given)

    def both() -> None:
        grad(layer(*given), wanted, inputs.grad_y)

    def evaluate() -> Tensor:
        with torch.no_grad():
            return layer(*given)

    if direction == "backward":
        return Work(lambda y: grad(y, wanted, inputs.grad_y), prepare=forward)
    return Work({"forward": forward, "forward_backward": both, "eval": evaluate}[direction])


def copies(x: Tensor) -> dict[str, Work]:
    """A plain copy of x into an array that exists, and into a new one."""
    source, target = x.detach(), torch.empty_like(x, requires_grad=False)
    return {
        "copy": Work(lambda: target.copy_(source)),
        "copy_new": Work(lambda: torch.empty_like(source).copy_(source)),
    }


class Prepared(NamedTuple):
    """Layers ready to be timed, by provider, and those that failed."""

    layers: Mapping[str, tuple[Layer, list[Tensor]]]
    missing: tuple[Missing, ...]


def prepare(
    operator: Operator,
    inputs: Inputs,
    *,
    training: bool,
    compiled: tuple[str, ...] = ("compile",),
) -> Prepared:
    """Make the layers of one operator, and compile what is to be compiled.

    Args:
        operator: What is computed.
        inputs: Called once with these, so that nothing is compiled within the time.
        training: Mode of the layers.
        compiled: Some of "compile" and "bnkit_compile".

    Returns:
        The layers of "torch", "bnkit" and those of `compiled` that could be compiled.
    """
    c, dimensions = inputs.x.shape[1], inputs.x.ndim
    layers: dict[str, tuple[Layer, list[Tensor]]] = {}
    missing: list[Missing] = []
    makers = {"torch": TORCH, "bnkit": BNKIT, "compile": TORCH, "bnkit_compile": BNKIT}
    for name in ("torch", "bnkit", *compiled):
        layer: Any = with_parameters(makers[name].layer(operator, c, dimensions)).train(training)
        parameters = list(layer.parameters())
        if name in compiled:
            layer, reason = _compile(layer, parameters, inputs, training=training)
            if reason is not None:
                missing.append(Missing(name, reason))
                continue
        layers[name] = layer, parameters
    return Prepared(layers, tuple(missing))


def _compile(
    layer: nn.Module, parameters: list[Tensor], inputs: Inputs, *, training: bool
) -> tuple[Layer, str | None]:
    """The layer compiled for these inputs alone, or the reason why that failed."""
    import torch._dynamo

    torch._dynamo.reset()  # more shapes than the limit of one function would run uncompiled
    layer_compiled = torch.compile(layer, dynamic=False, fullgraph=True)
    direction: Direction = "forward_backward" if training else "eval"
    try:
        work_of(layer_compiled, parameters, inputs, direction).seconds(2)
    except (RuntimeError, OSError, ImportError) as error:  # no compiler, or one that fails
        return layer, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return layer_compiled, None

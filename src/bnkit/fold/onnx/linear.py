"""The nodes that can take a batch norm: Conv, ConvTranspose, Gemm, MatMul, and Add beside them."""

from dataclasses import dataclass

import numpy as np
from array_api_compat import numpy as xp

from bnkit.core.errors import InputError
from bnkit.core.fold import FoldedMap, WeightLayout, rounded
from bnkit.fold.onnx.norms import NotFolded, floats
from bnkit.fold.onnx.scopes import Document, Node

LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MATRIX = 2


@dataclass(frozen=True, slots=True)
class Channels:
    """Where the channels of the batch norm are in a value between it and a linear node.

    Attributes:
        axis: Their axis.
        rank: Dimensions of the value, None where nothing tells.
        repeated: Flatten has made several columns of each.
    """

    axis: int
    rank: int | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear node with constant weights.

    Attributes:
        node: The node.
        weight: In float64, times `alpha` of Gemm.
        bias: In float64, shape `(out,)`, times `beta` of Gemm; None without one.
        layout: Where the channels are in the weight.
        index: Which input the weight is.
        stored: The dtype to round to.
    """

    node: Node
    weight: np.ndarray
    bias: np.ndarray | None
    layout: WeightLayout
    index: int
    stored: np.dtype


def read_linear(document: Document, node: Node, channels: Channels) -> Linear:
    """Read a linear node that stands before or behind a batch norm.

    Args:
        document: The model.
        node: Of an operator in `LINEAR_OPS`.
        channels: Where the channels are in its output (a batch norm behind it) or input (before).

    Returns:
        Weights and layout.

    Raises:
        NotFolded: Its weights are no constants, or the channels are not those of its weights.
    """
    if node.op == "MatMul":
        return _read_matmul(document, node, channels)
    if channels.axis != 1:
        reason = f"{node.op} {node.label!r} has its channels on axis 1, not on {channels.axis}"
        raise NotFolded(reason)
    linear = (_read_gemm if node.op == "Gemm" else _read_conv)(document, node)
    if channels.rank not in (None, linear.weight.ndim):
        raise NotFolded(f"{node.op} {node.label!r} gives another rank than {channels.rank}")
    return linear


def put_linear(document: Document, linear: Linear, folded: FoldedMap) -> None:
    """Give a linear node its new weight and bias.

    Args:
        document: Is changed.
        linear: What was read.
        folded: The new values, as `rounded_linear` gave them.
    """
    node = linear.node
    weight, bias = folded
    wanted = linear.bias is not None or bool(np.any(bias))
    if wanted and node.op == "MatMul":
        _add_behind(document, linear, bias)
    elif wanted:
        hint = node.input(2) or f"{node.label}.bias"
        document.set_input(node, 2, document.add_constant(node.scope, f"{hint}_folded", bias))
    hint = f"{node.input(linear.index)}_folded"
    document.set_input(node, linear.index, document.add_constant(node.scope, hint, weight))
    if node.op == "Gemm":
        node.drop_attributes("alpha", "beta")


def rounded_linear(linear: Linear, folded: FoldedMap) -> FoldedMap:
    """New weight and bias in the type of the old weight, each rounded once.

    Args:
        linear: What was read.
        folded: The new values, in float64.

    Returns:
        The rounded values.

    Raises:
        NotFolded: They overflow that type.
    """
    return FoldedMap(*(round_to(v, linear.stored, linear.node) for v in folded))


@dataclass(frozen=True, slots=True, eq=False)
class Addend:
    """The constant of an Add or Sub node, one value per channel.

    Attributes:
        node: The node.
        index: Which input the constant is.
        values: In float64, shape `(c,)`.
        stored: Its dtype.
        channels: Where the channels are.
    """

    node: Node
    index: int
    values: np.ndarray
    stored: np.dtype
    channels: Channels

    @property
    def signs(self) -> tuple[int, int]:
        """Of the value and of the constant."""
        if self.node.op == "Add":
            return 1, 1
        return (1, -1) if self.index == 1 else (-1, 1)

    def changed(self, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """The constant with which the output is scaled and shifted, once its input is scaled.

        With `y = p x + q c`: `scale y + shift = p (scale x) + q (scale c + q shift)`.

        Args:
            scale: Per channel.
            shift: Per channel.

        Returns:
            The constant, rounded to its type, shape `(c,)`.

        Raises:
            NotFolded: It overflows that type.
        """
        return round_to(self.values * scale + self.signs[1] * shift, self.stored, self.node)

    def put(self, document: Document, values: np.ndarray) -> None:
        """Give the node its new constant.

        Args:
            document: Is changed.
            values: What `changed` gave.
        """
        behind = (self.channels.rank or 1) - 1 - self.channels.axis
        hint = f"{self.node.input(self.index)}_folded"
        shaped = values.reshape((-1,) + (1,) * behind)
        name = document.add_constant(self.node.scope, hint, shaped)
        document.set_input(self.node, self.index, name)


def read_addend(
    document: Document, node: Node, value: str, channels: Channels, count: int
) -> Addend:
    """Read an Add or Sub node of a value and a constant.

    Args:
        document: The model.
        node: Add or Sub.
        value: The name of what is not the constant; "" to find the constant.
        channels: Where the channels are.
        count: How many there are.

    Returns:
        The constant.

    Raises:
        NotFolded: It has no constant, or one that is not one value per channel.
    """
    what = f"what {node.op} {node.label!r} adds"
    index = _constant_index(document, node, value, what)
    values = floats(document, node, index, what)
    rank = channels.rank
    shape = values.shape
    if rank is None and values.size == 1 and values.ndim == 0:
        rank = channels.axis + 1
    if rank is None:
        raise NotFolded(f"the rank of what {node.op} {node.label!r} gives is not known")
    full = (1,) * (rank - len(shape)) + shape
    others = [d for i, d in enumerate(full) if i != channels.axis]
    if len(full) != rank or any(d != 1 for d in others) or full[channels.axis] not in (1, count):
        raise NotFolded(f"{what} is not one value per channel but of shape {shape}")
    wide = np.broadcast_to(values.astype(np.float64).reshape(-1), (count,))
    return Addend(node, index, wide, values.dtype, Channels(channels.axis, rank))


def _constant_index(document: Document, node: Node, value: str, what: str) -> int:
    if value:
        return 1 if node.input(0) == value else 0
    try:
        floats(document, node, 1, what)
    except NotFolded:
        floats(document, node, 0, what)
        return 0
    return 1


def _read_conv(document: Document, node: Node) -> Linear:
    weight, stored = _weight(document, node, 1)
    groups = node.attribute("group", 1)
    if weight.ndim <= _MATRIX or groups < 1 or weight.shape[0] % groups:
        msg = (
            f"node {node.label!r}: expected a weight for {groups} groups and a kernel, got the "
            f"shape {weight.shape}"
        )
        raise InputError(msg)
    layout = WeightLayout(groups, transposed=node.op == "ConvTranspose")
    bias = _bias(document, node, layout.out_channels(weight.shape))
    return Linear(node, weight, bias, layout, 1, stored)


def _read_gemm(document: Document, node: Node) -> Linear:
    weight, stored = _weight(document, node, 1)
    if weight.ndim != _MATRIX:
        msg = f"node {node.label!r}: expected a matrix as weight, got the shape {weight.shape}"
        raise InputError(msg)
    layout = WeightLayout(transposed=not node.attribute("transB", 0))
    bias = _bias(document, node, layout.out_channels(weight.shape))
    beta = node.attribute("beta", 1.0)
    bias = None if bias is None else bias * beta if beta else np.zeros_like(bias)
    return Linear(node, weight * node.attribute("alpha", 1.0), bias, layout, 1, stored)


def _read_matmul(document: Document, node: Node, channels: Channels) -> Linear:
    if channels.rank is None:
        raise NotFolded(f"the rank of what MatMul {node.label!r} takes and gives is not known")
    index = channels.rank - channels.axis  # 1: the last axis, the weight is on the right
    if index not in (1, 2):
        reason = (
            f"the channels are on axis {channels.axis}, which MatMul {node.label!r} leaves alone"
        )
        raise NotFolded(reason)
    index %= 2
    weight, stored = _weight(document, node, index)
    if weight.ndim != _MATRIX:
        raise NotFolded(f"MatMul {node.label!r} has weights of shape {weight.shape}, no matrix")
    return Linear(node, weight, None, WeightLayout(transposed=index == 1), index, stored)


def _weight(document: Document, node: Node, index: int) -> tuple[np.ndarray, np.dtype]:
    values = floats(document, node, index, f"the weight of {node.op} {node.label!r}")
    return values.astype(np.float64), values.dtype


def _bias(document: Document, node: Node, out: int) -> np.ndarray | None:
    if not node.input(2):
        return None
    what = f"the bias of {node.op} {node.label!r}"
    values = floats(document, node, 2, what).astype(np.float64)
    if values.size not in (1, out) or (values.ndim and values.shape[-1] != values.size):
        raise NotFolded(f"{what} is not one value per channel but of shape {values.shape}")
    return np.broadcast_to(values.reshape(-1), (out,))


def _add_behind(document: Document, linear: Linear, bias: np.ndarray) -> None:
    """The bias of a MatMul: into the Add behind it, where there is one, or as a new Add."""
    node, name = linear.node, linear.node.proto.output[0]
    channels = Channels(0, 1) if linear.index == 1 else Channels(0, 2)
    reader = node.scope.sole_reader(name)
    if reader is not None and reader.scope is node.scope and reader.op in {"Add", "Sub"}:
        try:
            addend = read_addend(document, reader, name, channels, bias.size)
            shift = addend.signs[0] * bias.astype(np.float64)
            values = addend.changed(np.ones(bias.size), shift)
        except NotFolded:  # it adds something else: the bias gets an Add of its own
            pass
        else:
            addend.put(document, values)
            return
    shape = (-1,) if linear.index == 1 else (-1, 1)
    hint = f"{node.label}.bias_folded"
    constant = document.add_constant(node.scope, hint, bias.reshape(shape))
    document.insert_behind(node, "Add", constant)


def round_to(values: np.ndarray, stored: np.dtype, node: Node) -> np.ndarray:
    """Values in their storage type, rounded once.

    Args:
        values: In float64.
        stored: The type.
        node: For messages.

    Returns:
        The values in that type.

    Raises:
        NotFolded: They overflow it.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return rounded(xp, values, stored)
    except InputError as error:
        raise NotFolded(f"{node.op} {node.label!r}: {error}") from error

"""Programs of `torch.export`, as modules whose batch norms can be folded.

An exported program calls functions with tensors. Where all parameters of such a call belong to it
alone, a layer that computes the same takes its place, and the program folds like any module.
"""

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnkit.core.errors import FoldError

_CONVS = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d),
          3: (nn.Conv3d, nn.ConvTranspose3d)}  # fmt: skip


def as_module(model: Any) -> nn.Module:
    """The model as a module with layers.

    Args:
        model: A module, or a program of `torch.export`.

    Returns:
        The module itself; for a program and its module a graph module that calls layers.

    Raises:
        FoldError: Something else.
    """
    if isinstance(model, torch.export.ExportedProgram):
        try:
            return _with_layers(model.module())
        except NotImplementedError as error:
            msg = f"fold: expected a program that can be made a module, got: {error}."
            raise FoldError(msg) from error
    if isinstance(model, nn.Module):
        return model
    msg = (
        f"fold: expected a torch.nn.Module or a torch.export.ExportedProgram, got "
        f"{type(model).__name__}. Pass the model."
    )
    raise FoldError(msg)


def _with_layers(module: Any) -> nn.Module:
    """The module of a program in which layers stand for calls of functions."""
    aten = torch.ops.aten
    makers: dict[Any, Callable[..., nn.Module | None]] = {
        aten.linear.default: _linear, aten.batch_norm.default: _batch_norm,
        aten.conv1d.default: _conv(1), aten.conv2d.default: _conv(2), aten.conv3d.default: _conv(3),
        aten.conv1d.padding: _conv(1), aten.conv2d.padding: _conv(2), aten.conv3d.padding: _conv(3),
        aten.conv_transpose1d.default: _deconv(1), aten.conv_transpose2d.input: _deconv(2),
        aten.conv_transpose3d.input: _deconv(3),
    }  # fmt: skip
    graph = module.graph
    uses = Counter(str(n.target) for n in graph.nodes if n.op == "get_attr")
    for node in list(graph.nodes):
        maker = makers.get(node.target) if node.op == "call_function" else None
        if maker is None:
            continue
        attributes = [n for n in node.all_input_nodes if n.op == "get_attr"]
        if all(uses[str(a.target)] == 1 and len(a.users) == 1 for a in attributes):
            _put_layer(module, node, maker)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    graph.lint()
    module.recompile()
    for part in module.modules():
        part.training = False
    return module


def _put_layer(module: Any, node: fx.Node, maker: Callable[..., nn.Module | None]) -> None:
    values = [_value(module, a) for a in node.args]
    if node.kwargs or not isinstance(node.args[0], fx.Node):
        return
    layer = maker(*values[1:])
    if layer is None:
        return
    owners = {str(a.target).rpartition(".")[0] for a in node.all_input_nodes if a.op == "get_attr"}
    name = owners.pop() if len(owners) == 1 else ""
    name = name or f"layers.{node.name}"  # where it was, where that can be told
    module.delete_submodule(name)
    module.add_submodule(name, layer)
    with module.graph.inserting_before(node):
        new = module.graph.call_module(name, (node.args[0],))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _value(module: nn.Module, given: Any) -> Any:
    if isinstance(given, fx.Node) and given.op == "get_attr":
        return operator.attrgetter(str(given.target))(module)
    return given


def _own(layer: Any, **tensors: Any) -> Any:
    for name, tensor in tensors.items():
        if tensor is None:
            setattr(layer, name, None)
        elif name in ("weight", "bias"):
            own = (
                tensor
                if isinstance(tensor, nn.Parameter)
                else nn.Parameter(tensor, requires_grad=False)
            )
            setattr(layer, name, own)
        else:
            layer._buffers[name] = tensor
    return layer.eval()


def _is_tensor(*values: Any) -> bool:
    return all(v is None or isinstance(v, Tensor) for v in values)


def _linear(weight: Any, bias: Any = None) -> nn.Module | None:
    if not _is_tensor(weight, bias) or weight.ndim != 2:
        return None
    return _own(nn.Linear(*reversed(weight.shape), device="meta"), weight=weight, bias=bias)


def _batch_norm(weight: Any, bias: Any, mean: Any, var: Any, *options: Any) -> nn.Module | None:
    training, _momentum, eps, *_ = options
    if training or mean is None or not _is_tensor(weight, bias, mean, var):
        return None
    layer = ProgramBatchNorm(mean.numel(), eps=eps, device="meta")
    statistics = {"running_mean": mean, "running_var": var, "num_batches_tracked": None}
    return _own(layer, weight=weight, bias=bias, **statistics)


class ProgramBatchNorm(_BatchNorm):
    """The function takes any number of dimensions, and the program has fixed them."""

    def _check_input_dim(self, input: Tensor) -> None:
        del input


def _conv(spatial: int) -> Callable[..., nn.Module | None]:
    names = ("stride", "padding", "dilation", "groups")

    def make(weight: Any, bias: Any = None, *options: Any) -> nn.Module | None:
        if not _is_tensor(weight, bias):
            return None
        given = _options(names, options, spatial)
        channels = weight.shape[1] * given.get("groups", 1), weight.shape[0]
        layer = _CONVS[spatial][0](*channels, tuple(weight.shape[2:]), device="meta", **given)
        return _own(layer, weight=weight, bias=bias)

    return make


def _deconv(spatial: int) -> Callable[..., nn.Module | None]:
    names = ("stride", "padding", "output_padding", "groups", "dilation")

    def make(weight: Any, bias: Any = None, *options: Any) -> nn.Module | None:
        if not _is_tensor(weight, bias):
            return None
        given = _options(names, options, spatial)
        channels = weight.shape[0], weight.shape[1] * given.get("groups", 1)
        layer = _CONVS[spatial][1](*channels, tuple(weight.shape[2:]), device="meta", **given)
        return _own(layer, weight=weight, bias=bias)

    return make


def _options(names: tuple[str, ...], options: tuple[Any, ...], spatial: int) -> dict[str, Any]:
    given = dict(zip(names, options, strict=False))
    return {n: v if n == "groups" else _tuple(v, spatial) for n, v in given.items()}


def _tuple(value: Any, spatial: int) -> Any:
    if isinstance(value, str):
        return value
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(numbers * spatial if len(numbers) == 1 else numbers)

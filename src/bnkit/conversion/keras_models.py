"""Keras 3 models as one side of a conversion, and single layers both ways."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bnkit.conversion.gather import Side
from bnkit.conversion.layer import Kind, Layer
from bnkit.conversion.modules import is_batch_norm, module_spec, to_numpy
from bnkit.conversion.worlds import WORLDS
from bnkit.core import KERAS3, BatchNormSpec, BatchNormState, ConversionError, InputError
from bnkit.core import convert_state as convert
from bnkit.nn import BatchNorm

_ROLES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "kernel": "weight",
    "embeddings": "weight",
    "alpha": "weight",
}
_PARTS = {"depthwise_kernel": "depthwise", "pointwise_kernel": "pointwise"}


class KerasModel:
    """A Keras model whose variables can be assigned, all or none.

    Args:
        model: It is changed by `assign`.
        variables: Its variables, by the names that the conversion uses.
    """

    def __init__(self, model: Any, variables: Mapping[str, Any]) -> None:
        self.model, self.variables = model, dict(variables)

    def assign(self, tensors: Mapping[str, np.ndarray]) -> Any:
        """Write arrays into the variables.

        Args:
            tensors: By name.

        Returns:
            The model.

        Raises:
            InputError: A variable is gone or has another shape; nothing was changed.
        """
        for name, array in tensors.items():
            found = self.variables.get(name)
            if found is None or tuple(found.shape) != array.shape:
                msg = (
                    f"{name!r}: expected a variable of shape {array.shape}, as when the plan was "
                    "made, got another one. Nothing was changed. Convert again."
                )
                raise InputError(msg)
        for name, array in tensors.items():
            self.variables[name].assign(array)
        return self.model


def keras_side(model: Any) -> tuple[Side, KerasModel]:
    """The layers of a Keras model, in its order.

    Args:
        model: A built model or layer.

    Returns:
        Its layers, and what writes into them.

    Raises:
        InputError: It is not built.
    """
    if not getattr(model, "built", True):
        msg = (
            f"{type(model).__name__} {model.name!r}: expected a built Keras model, got one without "
            "variables. Call it on one batch, or model.build(input_shape), first."
        )
        raise InputError(msg)
    layers: list[Layer] = []
    variables: dict[str, Any] = {}
    first: list[bool] = []
    for layer in model._flatten_layers():
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        own = [v for v in own if "seed" not in v.name]
        if own:
            named = _named(own, len(variables))
            variables |= {n: v for group in named.values() for n, v in group.values()}
            layers += [_layer(layer, part, group) for part, group in named.items()]
        if hasattr(layer, "data_format"):
            first.append(layer.data_format == "channels_first")
    last = not (first and all(first))
    side = Side(
        title=f"{type(model).__name__} {model.name!r} (Keras)",
        world=replace(WORLDS["keras3"], channels_last=last),
        layers=tuple(layers),
        ordered=True,
        read=lambda name: _array(variables[name]),
        dtypes={n: str(v.dtype) for n, v in variables.items()},
    )
    return side, KerasModel(model, variables)


def keras_spec(layer: Any) -> BatchNormSpec:
    """What a `keras.layers.BatchNormalization` computes, with its arguments.

    Args:
        layer: The layer.

    Returns:
        The specification of Keras 3 with them.
    """
    spec = replace(
        KERAS3,
        eps=float(layer.epsilon),
        ema_weight=round(1 - float(layer.momentum), 12),
        channel_axis=int(layer.axis),
        has_weight=bool(layer.scale),
        has_bias=bool(layer.center),
    )
    if getattr(layer, "renorm", False):
        spec = replace(spec, train_statistics="renorm", tracked_second_moment="stddev")
    return spec


def to_keras(layer: Any, *, axis: int | None = None, name: str | None = None) -> Any:
    """A Keras layer with the arguments and numbers of a PyTorch batch norm.

    Args:
        layer: A batch norm of torch or bnkit.
        axis: The channel axis of the new layer; by default the last, as Keras has it.
        name: Of the new layer.

    Returns:
        A built `keras.layers.BatchNormalization` with the same inference.

    Raises:
        InputError: It is no batch norm.
        ConversionError: It keeps no statistics, or has several channel axes.

    Example:
        >>> import os; os.environ["KERAS_BACKEND"] = "torch"
        >>> import torch, bnkit
        >>> from bnkit.conversion import to_keras
        >>> to_keras(torch.nn.BatchNorm2d(3, eps=1e-4, momentum=0.2)).get_config()["momentum"]
        0.8
    """
    import keras

    if not (isinstance(layer, torch.nn.Module) and is_batch_norm(layer)):
        msg = f"to_keras: expected a batch norm of torch or bnkit, got {type(layer).__name__}."
        raise InputError(msg)
    spec = module_spec(layer)
    if spec.ema_weight is None:
        msg = "to_keras: expected an exponential average, got momentum=None, which Keras lacks."
        raise ConversionError(msg)
    where = -1 if axis is None else axis
    made = keras.layers.BatchNormalization(
        axis=where,
        momentum=round(1 - spec.ema_weight, 12),
        epsilon=spec.eps,
        center=layer.bias is not None,
        scale=layer.weight is not None,
        name=name,
    )
    done = convert(_module_state(layer), spec, keras_spec(made), name=type(layer).__name__)
    channels = np.asarray(done.state.running_mean).shape[0]
    rank = max(2, where + 1, -where + 1)
    shape: list[int | None] = [None] * rank
    shape[where] = channels
    made.build(tuple(shape))
    roles = done.state.roles()
    for leaf, role in _ROLES.items():
        variable = getattr(made, leaf, None)
        if variable is not None and role in roles:
            variable.assign(roles[role])
    made.input_spec = None  # any rank; Keras fixes the one that it was built with
    return made


def from_keras(layer: Any) -> BatchNorm:
    """A bnkit layer that trains and infers as this Keras layer does.

    Args:
        layer: A built `keras.layers.BatchNormalization`.

    Returns:
        A `bnkit.nn.BatchNorm` on the same axis, with the arguments and numbers of the layer: the
        biased running variance and, of a renormalization, its references too.

    Raises:
        InputError: It is no batch norm of Keras, or is not built.
    """
    if not _is_keras_norm(layer) or not layer.built:
        msg = (
            "from_keras: expected a built keras.layers.BatchNormalization, got "
            f"{type(layer).__name__}{'' if getattr(layer, 'built', True) else ', not built'}."
        )
        raise InputError(msg)
    renorm = bool(getattr(layer, "renorm", False))
    made = BatchNorm(
        int(layer.moving_mean.shape[0]),
        axis=int(layer.axis),
        momentum=round(1 - float(layer.momentum), 12),
        eps=float(layer.epsilon),
        center=bool(layer.center),
        scale=bool(layer.scale),
        trainable=bool(layer.trainable),
        running_correction=0,
        renorm=renorm,
        renorm_clipping=dict(layer.renorm_clipping or {}) if renorm else None,
        renorm_momentum=round(1 - float(layer.renorm_momentum), 12) if renorm else None,
    )
    names = {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
        "moving_stddev": "running_stddev",
        "renorm_mean": "renorm_mean",
        "renorm_stddev": "renorm_stddev",
    }
    with torch.no_grad():
        for leaf, own in names.items():
            variable = getattr(layer, leaf, None)
            if variable is not None and getattr(made, own, None) is not None:
                getattr(made, own).copy_(torch.tensor(_array(variable)))
    return made


def _module_state(layer: Any) -> BatchNormState:
    names = ("weight", "bias", "running_mean", "running_var")
    found = {n: getattr(layer, n) for n in names if getattr(layer, n, None) is not None}
    return BatchNormState.from_roles({n: to_numpy(t) for n, t in found.items()})


def _is_keras_norm(layer: Any) -> bool:
    return "BatchNormalization" in {c.__name__ for c in type(layer).__mro__}


def _named(own: list[Any], taken: int) -> dict[str, dict[str, tuple[str, Any]]]:
    """Roles to (unique name, variable), for each part of a layer."""
    found: dict[str, dict[str, tuple[str, Any]]] = {}
    parts = {_PARTS[v.name] for v in own if v.name in _PARTS}
    for number, variable in enumerate(own, taken):
        leaf = str(variable.name)
        part = _PARTS.get(leaf, sorted(parts)[-1] if parts else "")
        role = "weight" if leaf in _PARTS else str(_ROLES.get(leaf, leaf))
        found.setdefault(part, {})[role] = (f"{variable.path}#{number}", variable)
    return found


def _layer(layer: Any, part: str, group: Mapping[str, tuple[str, Any]]) -> Layer:
    sizes = {role: tuple(v.shape) for role, (_, v) in group.items()}
    norm = _is_keras_norm(layer)
    scope = next(iter(group.values()))[1].path.rpartition("/")[0] or layer.name
    named = f"{scope}/{part}" if part and "Separable" in type(layer).__name__ else scope
    return Layer(
        name=named,
        kinds=("batch_norm",) if norm else _kinds(layer, part, sizes),
        tensors={role: name for role, (name, _) in group.items()},
        shapes=sizes,
        facts={"spec": keras_spec(layer), "class": type(layer).__name__} if norm else {},
    )


def _kinds(layer: Any, part: str, sizes: Mapping[str, tuple[int, ...]]) -> tuple[Kind, ...]:
    kind = type(layer).__name__
    if sizes.keys() - {"weight", "bias"} or "weight" not in sizes:
        return ("other",)
    if part == "depthwise" or kind.startswith("Depthwise"):
        return ("depthwise", "conv")
    if "Transpose" in kind:
        return ("conv_transpose",)
    rank = len(sizes["weight"])
    if kind in ("Embedding",) or rank < 2:
        return ("other",)
    return ("dense",) if rank == 2 else ("conv",)


def _array(variable: Any) -> np.ndarray:
    """The numbers of a variable, on any backend; bfloat16 as float32."""
    value = variable.value
    found = to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found

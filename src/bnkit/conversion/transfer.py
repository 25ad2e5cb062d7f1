"""The numbers of one layer, from the terms of one framework to those of another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnkit.conversion.gather import Side
from bnkit.conversion.kernels import permute_flattened
from bnkit.conversion.layer import Layer
from bnkit.conversion.matching import Pair
from bnkit.core import (
    BatchNormSpec,
    BatchNormState,
    Conversion,
    ConversionError,
    convert_state,
    read_state,
)

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transfer:
    """One pair of layers and what the target is given.

    Attributes:
        pair: The layers.
        tensors: Arrays by the name of the target's tensor, in its layout, shape and dtype.
        notes: What was done beside copying.
        conversion: Of a batch norm, what is proved of it.
        specs: Of a batch norm, what source and target mean by it.
        origin: Where the specification of the source comes from: given, stored, or a default.
        target_origin: The same of the target.
    """

    pair: Pair
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    notes: tuple[str, ...] = ()
    conversion: Conversion | None = None
    specs: tuple[BatchNormSpec, BatchNormSpec] | None = None
    origin: str = ""
    target_origin: str = ""


def transfer_batch_norm(
    pair: Pair,
    sides: tuple[Side, Side],
    specs: tuple[BatchNormSpec, BatchNormSpec],
    *,
    count: int | None = None,
    affine_only: bool = False,
) -> Transfer:
    """Convert a batch norm.

    Args:
        pair: The layers.
        sides: Whose they are.
        specs: Of source and target.
        count: Values per channel in a training batch.
        affine_only: Leave the statistics of the target as they are; that was asked for by name.

    Returns:
        Its tensors and what is proved.

    Raises:
        ConversionError: Statistics or places for them are missing, or the numbers cannot be read.
    """
    read = sides[0].read
    state = BatchNormState.from_roles({r: read(n) for r, n in pair.source.tensors.items()})
    if affine_only:
        given = {r: a for r, a in (("weight", state.weight), ("bias", state.bias)) if a is not None}
        note = "weight and bias alone: the statistics stay as they are, as asked"
        return Transfer(pair=pair, tensors=_placed(pair, sides[1], given, []), notes=(note,))
    _check_statistics(pair)
    done = convert_state(state, *specs, count=count, name=pair.source.name)
    notes = list(done.notes)
    roles = done.state.roles() | _seeded(pair.target, done.state, specs[1])
    for role, neutral in (("weight", 1.0), ("bias", 0.0)):
        if role in roles and role not in pair.target.tensors:
            if not np.all(roles[role] == neutral):
                msg = (
                    f"batch norm {pair.source.name!r} -> {pair.target.name!r}: expected a target "
                    f"with a {role}, got one without. Build it with one (affine=True, scale=True)."
                )
                raise ConversionError(msg)
            del roles[role]
        elif role in pair.target.tensors and role not in roles:
            roles[role] = np.full(roles["running_var"].shape, neutral, roles["running_var"].dtype)
    if "count" in pair.target.tensors and "count" not in roles and specs[1].ema_weight is None:
        notes.append("batches seen: not stored, so that the next batch replaces the average")
    tensors = _placed(pair, sides[1], roles, notes)
    return Transfer(pair=pair, tensors=tensors, notes=tuple(notes), conversion=done, specs=specs)


def transfer_kernel(
    pair: Pair, sides: tuple[Side, Side], spatial: tuple[int, ...] | None = None
) -> Transfer:
    """Transpose a kernel into the layout of the target; its bias goes along.

    Args:
        pair: The layers.
        sides: Whose they are.
        spatial: Of a dense layer behind a flattened feature map, the spatial sizes of that map,
            where source and target flatten in different orders.

    Returns:
        Its tensors.

    Raises:
        ConversionError: The source has a bias that is not zero and the target has none.
    """
    source, target = pair.source, pair.target
    layouts = [
        side.kernel(layer, pair.kind) for side, layer in zip(sides, (source, target), strict=True)
    ]
    kernel = layouts[0].to_torch(sides[0].read(source.tensors["weight"]))
    notes: list[str] = []
    if layouts[0].name != layouts[1].name:
        notes.append(f"({layouts[0].name}) -> ({layouts[1].name})")
    if spatial is not None:
        to_first = sides[0].world.channels_last
        kernel = permute_flattened(kernel, spatial, to_channels_first=to_first)
        notes.append(f"inputs reordered for a flattened map of {spatial}")
    given = {"weight": layouts[1].from_torch(kernel, target.shapes["weight"])}
    bias = source.tensors.get("bias")
    if bias is not None:
        given["bias"] = sides[0].read(bias).reshape(-1)
    if "bias" in target.tensors and bias is None:
        given["bias"] = np.zeros(target.shapes["bias"], np.float32)
        notes.append("bias 0 stands for the one that the source does not have")
    if bias is not None and "bias" not in target.tensors:
        if np.any(given.pop("bias")):
            msg = (
                f"{source.name!r} -> {target.name!r}: expected a target with a bias, got one "
                "without, and the bias is not zero. Build the target with bias=True."
            )
            raise ConversionError(msg)
        notes.append("the bias of the source is zero and the target has none")
    return Transfer(pair=pair, tensors=_placed(pair, sides[1], given, notes), notes=tuple(notes))


def transfer_other(pair: Pair, sides: tuple[Side, Side]) -> Transfer:
    """Copy the tensors of a layer that no framework lays out differently.

    Args:
        pair: The layers.
        sides: Whose they are.

    Returns:
        Its tensors.
    """
    given = {r: sides[0].read(n) for r, n in pair.source.tensors.items()}
    return Transfer(pair=pair, tensors=_placed(pair, sides[1], given, []))


def _check_node(pair: Pair) -> None:
    """An ONNX node must be in inference form, with constants."""
    where = f"batch norm {pair.source.name!r} -> {pair.target.name!r}"
    attributes = pair.source.facts.get("attributes", {})
    if attributes.get("training_mode") or len(attributes.get("outputs", ())) > 1:
        msg = (
            f"{where}: expected a node in inference form, got one in training form, which "
            "normalizes with its batch. Export the model in eval mode."
        )
        raise ConversionError(msg)
    roles = ("weight", "bias", *_STATISTICS)
    inputs = attributes.get("inputs", ())[1:] if "outputs" in attributes else ()
    computed = [
        r for r, n in zip(roles, inputs, strict=False) if n and r not in pair.source.tensors
    ]
    if computed:
        msg = (
            f"{where}: expected stored numbers, got a {computed[0]} that the graph computes or is "
            "given at run time. Only constants can be converted."
        )
        raise ConversionError(msg)


def _check_statistics(pair: Pair) -> None:
    _check_node(pair)
    where = f"batch norm {pair.source.name!r} -> {pair.target.name!r}"
    missing = [r for r in _STATISTICS if r not in pair.source.tensors]
    if missing:
        msg = (
            f"{where}: its weight would be restored and its statistics would not: the source has "
            f"no {' and '.join(missing)}. Take a checkpoint that has them, or recalibrate the "
            f"target afterwards and allow it by name: leave=['{pair.target.name}.running_*']."
        )
        raise ConversionError(msg)
    missing = [r for r in _STATISTICS if r not in pair.target.tensors]
    if missing:
        msg = (
            f"{where}: expected a target that keeps running statistics, got one without "
            f"{' and '.join(missing)}. Build it with track_running_stats=True."
        )
        raise ConversionError(msg)


def _seeded(target: Layer, state: BatchNormState, spec: BatchNormSpec) -> dict[str, Any]:
    """What else the target keeps, begun from the statistics."""
    wanted = target.tensors.keys() - state.roles().keys()
    wanted &= {
        "hidden_mean",
        "hidden_var",
        "biased_mean",
        "moving_stddev",
        "renorm_mean",
        "renorm_stddev",
        "renorm_mean_weight",
        "renorm_stddev_weight",
    }
    if not wanted:
        return {}
    read = read_state(state, spec, name=target.name)
    one = np.ones((), np.float32)
    stddev = np.sqrt(np.maximum(read.var + spec.eps, 0))
    found = {
        "moving_stddev": stddev,
        "renorm_stddev": stddev,
        "renorm_mean": read.mean,
        "renorm_mean_weight": one,
        "renorm_stddev_weight": one,
    }
    if "hidden_mean" in wanted:  # Haiku: the average beside what it is computed from
        found |= {"hidden_mean": state.running_mean, "hidden_var": state.running_var}
        found |= {"running_mean": read.mean, "running_var": read.var}
        wanted |= set(_STATISTICS)
    if "biased_mean" in wanted:
        t = state.count or 10**9
        found |= {"count": t, "biased_mean": read.mean * (1 - (1 - (spec.ema_weight or 1)) ** t)}
        wanted |= {"count"} & target.tensors.keys()
    return {role: np.asarray(found[role]) for role in wanted}


def _placed(
    pair: Pair, side: Side, given: Mapping[str, Any], notes: list[str]
) -> dict[str, np.ndarray]:
    """Arrays by the names of the target, in its shape and dtype."""
    found = {}
    for role, name in pair.target.tensors.items():
        if role not in given:
            continue
        shape = pair.target.shapes[role]
        array = np.asarray(given[role])
        cast = _cast(array.reshape(shape), side.dtypes.get(name, "float32"))
        if np.isfinite(array).all() and not np.isfinite(cast).all():
            msg = (
                f"{name!r}: expected numbers that {side.dtypes[name]} can hold, got "
                f"{float(np.abs(array).max()):g}. Keep the target in float32."
            )
            raise ConversionError(msg)
        if array.dtype.itemsize > cast.dtype.itemsize and array.dtype.kind == "f":
            notes.append(f"{role} rounded to {side.dtypes[name]}")
        found[name] = np.array(cast, order="C")
    return found


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16" or dtype.startswith("float8"):
        return array.astype(np.float32)  # rounded by the writer, which knows the format
    with np.errstate(over="ignore"):
        return array.astype(np.dtype(dtype))

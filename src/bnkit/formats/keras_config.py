"""Batch norms in the JSON of a Keras model; layers are looked up in it and never built."""

import re
from collections.abc import Iterator
from typing import Any

from bnkit.formats.checkpoint import BatchNormEntry

_BATCH_NORMS = {
    "BatchNormalization",
    "BatchNormalizationV1",
    "BatchNormalizationV2",
    "SyncBatchNormalization",
}
_MAX_DEPTH = 32
Path = tuple[str, ...]


def batch_norm_configs(model: Any) -> dict[Path, dict[str, Any]]:
    """Find the batch norms of a model.

    Args:
        model: The document `config.json`, or the attribute `model_config`.

    Returns:
        The configuration of each by the names of the models around it and its own.
    """
    return {path: config for path, _, config in _layers(model, (), ()) if config is not None}


def group_paths(model: Any) -> dict[Path, Path]:
    """Find where a weights file has each batch norm, by how Keras counts classes.

    Args:
        model: The document `config.json`.

    Returns:
        The path of names in the model, by the path of the group.
    """
    return {group: path for path, group, config in _layers(model, (), ()) if config is not None}


def _layers(
    model: Any, path: Path, group: Path
) -> Iterator[tuple[Path, Path, dict[str, Any] | None]]:
    config = model.get("config") if isinstance(model, dict) else None
    layers = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(layers, list) or len(path) > _MAX_DEPTH:
        return
    counts: dict[str, int] = {}
    for layer in layers:
        inner = layer.get("config") if isinstance(layer, dict) else None
        kind = layer.get("class_name") if isinstance(layer, dict) else None
        if not isinstance(kind, str):
            continue
        snake = _snake(kind)
        number = counts.get(snake, 0)
        counts[snake] = number + 1
        name = inner.get("name") if isinstance(inner, dict) else None
        own = (*path, str(name or layer.get("name") or snake))
        place = (*group, "layers", f"{snake}_{number}" if number else snake)
        is_batch_norm = kind in _BATCH_NORMS and isinstance(inner, dict)
        yield own, place, inner if is_batch_norm else None
        yield from _layers(layer, own, place)


def _snake(name: str) -> str:
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def configured(name: str, tensors: dict[str, str], config: dict[str, Any]) -> BatchNormEntry:
    """Describe a batch norm with what its configuration says.

    Args:
        name: Of the layer.
        tensors: By role.
        config: Of the layer, as Keras wrote it.

    Returns:
        The entry; values of the wrong type are left out.
    """
    eps, keep, axis = config.get("epsilon"), config.get("momentum"), config.get("axis")
    if isinstance(axis, list) and all(type(one) is int for one in axis):
        axis = axis[0] if len(axis) == 1 else tuple(axis)
    return BatchNormEntry(
        name,
        tensors,
        float(eps) if isinstance(eps, int | float) else None,
        1 - float(keep) if isinstance(keep, int | float) else None,
        axis if isinstance(axis, int | tuple) else None,
        config,
    )


def roles(config: dict[str, Any]) -> list[str]:
    """Which variables a layer stores, in their order.

    Args:
        config: Of the layer.

    Returns:
        Their roles.
    """
    found = ["weight"] if config.get("scale", True) else []
    found += ["bias"] if config.get("center", True) else []
    found += ["running_mean", "running_var"]
    return found + (
        ["moving_stddev", "renorm_mean", "renorm_stddev"] if config.get("renorm") else []
    )

"""Keras' files: `.keras`, `.weights.h5`, its shards, and the legacy `.h5` of Keras 1 to 3."""

import re
from dataclasses import replace
from typing import Any

from bnkit.formats.by_name import entries_by_name
from bnkit.formats.checkpoint import BatchNormEntry, Checkpoint, StoredTensor
from bnkit.formats.hdf5 import Hdf5, read_hdf5
from bnkit.formats.json_text import expect_object, parse_json
from bnkit.formats.keras_config import (
    Path,
    batch_norm_configs,
    configured,
    group_paths,
    roles,
)
from bnkit.formats.mapped import Mapped, beside, map_file
from bnkit.formats.zip_members import Member

WEIGHTS = "model.weights.h5"
_BY_CLASS = re.compile(r"(?:.*/)?batch_normalization(?:_\d+)?")
_PLAIN = {2: 0, 4: 2, 5: 0, 7: 2}  # stored variables -> how many of them are weight and bias
_MAX_SHARDS = 10_000


def read_keras_zip(source: Mapped, members: dict[str, Member]) -> Checkpoint:
    """Read a `.keras` archive.

    Args:
        source: The file.
        members: Of the archive.

    Returns:
        The checkpoint, with `config` and `version` in its metadata.

    Raises:
        CheckpointError: It has no configuration or no weights, or is damaged.
    """
    for wanted in ("config.json", WEIGHTS):
        if wanted not in members:
            raise source.error("list of members", wanted, f"{', '.join(list(members)[:5])}")
    config = parse_json(source, members["config.json"].read(), "config.json")
    about = {}
    if "metadata.json" in members:
        about = parse_json(source, members["metadata.json"].read(), "metadata.json")
        about = expect_object(source, about, "metadata.json")
    inner = Mapped(source.path, members[WEIGHTS].read(), WEIGHTS)
    metadata = {"config": config, **about}
    return _weights(source, "keras", read_hdf5(inner), metadata)


def read_keras_h5(source: Mapped) -> Checkpoint:
    """Read a `.weights.h5` or a legacy `.h5`.

    Args:
        source: The file.

    Returns:
        The checkpoint; of a legacy file that holds a model, with `config` in its metadata.
    """
    found = read_hdf5(source)
    top = found.attributes[""]
    legacy = "layer_names" in top or "model_weights" in found.attributes
    if not legacy and "layer_names0" not in top:
        return _weights(source, "keras-weights-h5", found, {})
    metadata: dict[str, Any] = {k: v for k, v in top.items() if isinstance(v, str)}
    if "model_config" in metadata:
        text = metadata.pop("model_config").encode()
        metadata["config"] = parse_json(source, text, "attribute 'model_config'")
    tensors = _legacy_order(found)
    configs = batch_norm_configs(metadata.get("config"))
    entries = tuple(_legacy_entry(entry, configs) for entry in entries_by_name(tensors))
    return Checkpoint(source.path, "keras-h5", tensors, metadata, entries)


def read_keras_shards(source: Mapped) -> Checkpoint:
    """Read `.weights.json`, which names the shards that each group is in.

    Args:
        source: The file.

    Returns:
        The checkpoint; a variable that is in several shards is refused.

    Raises:
        CheckpointError: The index is damaged, names files elsewhere, or shards disagree.
    """
    index = expect_object(source, parse_json(source, source.data, "index"), "index")
    groups = expect_object(source, index.get("weight_map"), "weight_map")
    shards: dict[str, None] = {}
    for group, value in groups.items():
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) for name in names):
            raise source.error(f"weight_map, {group!r:.120}", "names of files", "something else")
        shards.update(dict.fromkeys(names))
    if not 0 < len(shards) <= _MAX_SHARDS:
        raise source.error("weight_map", f"1 to {_MAX_SHARDS} files", f"{len(shards)}")
    whole = Hdf5({}, {})
    for name in shards:
        part = read_hdf5(map_file(beside(source.path, name)))
        for tensor in part.tensors:
            if tensor in whole.tensors:
                raise source.error(f"shard {name!r}", "variables that differ", f"{tensor!r} twice")
        whole.tensors.update(part.tensors)
        for path, attributes in part.attributes.items():
            whole.attributes.setdefault(path, {}).update(attributes)
    about = index.get("metadata")
    return _weights(source, "keras-shards", whole, about if isinstance(about, dict) else {})


def _legacy_entry(entry: BatchNormEntry, configs: dict[Path, dict[str, Any]]) -> BatchNormEntry:
    """Name it like the layer, and add its configuration if the file has one of that name."""
    # The path is that of the layer (a nested model is one), then the name of the variable, which
    # often repeats the layer, and may begin with the name of the model.
    path = tuple(entry.name.removeprefix("model_weights/").split("/"))
    if path[0] == path[-1]:
        path = path[:1]
    for known in (path, (path[0], path[-1]), path[:1], path[-1:]):
        if known in configs:
            return configured("/".join(known), dict(entry.tensors), configs[known])
    return replace(entry, name="/".join(path))


def _legacy_order(found: Hdf5) -> dict[str, StoredTensor]:
    """The order of the model: that of `layer_names`, and `weight_names` in each layer."""
    root = "model_weights" if "model_weights" in found.attributes else ""
    order: dict[str, StoredTensor] = {}
    for layer in _listed(found.attributes[root], "layer_names"):
        group = f"{root}/{layer}".lstrip("/")
        for weight in _listed(found.attributes.get(group, {}), "weight_names"):
            name = f"{group}/{weight}"
            if name in found.tensors:
                order[name] = found.tensors[name]
    return order | {name: one for name, one in found.tensors.items() if name not in order}


def _listed(attributes: dict[str, Any], name: str) -> list[str]:
    """A list of names; a long one is stored in parts `name0`, `name1`, ..."""
    parts = [attributes[name]] if name in attributes else []
    while f"{name}{len(parts)}" in attributes:
        parts.append(attributes[f"{name}{len(parts)}"])
    return [one for part in parts if isinstance(part, list) for one in part if isinstance(one, str)]


def _weights(source: Mapped, kind: str, found: Hdf5, metadata: dict[str, Any]) -> Checkpoint:
    config = metadata.get("config")
    configs, counted = batch_norm_configs(config), group_paths(config)
    by_layer: dict[Path, BatchNormEntry] = {}
    others: list[BatchNormEntry] = []
    for group, names in _variables(found).items():
        path = _layer_path(found, group) or counted.get(tuple(group.split("/")), ())
        one = configs.get(path)
        if one is not None and len(roles(one)) == len(names):
            entry = configured("/".join(path), dict(zip(roles(one), names, strict=True)), one)
            by_layer[path] = replace(entry, attributes={**entry.attributes, "group": group})
        elif one is None and _BY_CLASS.fullmatch(group) and len(names) in range(2, 8):
            others.append(_unconfigured(group, "/".join(path) or group, names))
    entries = [by_layer[path] for path in configs if path in by_layer] + others
    return Checkpoint(source.path, kind, found.tensors, metadata, tuple(entries))


def _variables(found: Hdf5) -> dict[str, list[str]]:
    """The variables of each group with a subgroup `vars`, in their order."""
    groups: dict[str, list[str]] = {}
    for name in found.tensors:
        group, _, number = name.rpartition("/vars/")
        if number.isdecimal():
            groups.setdefault(group, []).append(name)
    return groups


def _layer_path(found: Hdf5, group: str) -> Path:
    """Names of the models around a group and its own, as Keras 3 stores them."""
    parts = group.split("/")
    names = []
    for depth in range(1, len(parts) + 1):
        own = found.attributes.get(f"{'/'.join(parts[:depth])}/vars", {}).get("name")
        names += [own] if isinstance(own, str) else []
    last = found.attributes.get(f"{group}/vars", {}).get("name")
    return tuple(names) if isinstance(last, str) else ()


def _unconfigured(group: str, name: str, names: list[str]) -> BatchNormEntry:
    """A batch norm whose settings the file does not hold; three variables can be two things."""
    affine = _PLAIN.get(len(names))
    renorm = ["moving_stddev", "renorm_mean", "renorm_stddev"] if len(names) > 4 else []
    known = ["running_mean", "running_var", *renorm]
    if affine is None:
        found = dict(zip(known, names[1:], strict=True))
        return BatchNormEntry(name, found, attributes={"group": group, "weight or bias": names[0]})
    found = dict(zip([*["weight", "bias"][:affine], *known], names, strict=True))
    return BatchNormEntry(name, found, attributes={"group": group})

"""Which specification the batch norms of a source have: as told, as stored, as usual."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from bnkit.conversion.layer import Layer
from bnkit.conversion.worlds import World
from bnkit.core import BatchNormSpec, SpecError, preset

Spec = str | BatchNormSpec | Mapping[str, "str | BatchNormSpec"]
_FIELDS = {f.name for f in fields(BatchNormSpec)}


def parse_spec(text: str | BatchNormSpec) -> BatchNormSpec:
    """A specification by name, with fields to change.

    Args:
        text: A preset such as `keras3`, or `keras3,eps=0.01,ema_weight=0.1`.

    Returns:
        The specification.

    Raises:
        SpecError: No preset or field has that name, or a value is impossible.

    Example:
        >>> parse_spec("keras3,eps=1e-4").eps
        0.0001
    """
    if isinstance(text, BatchNormSpec):
        return text
    found, changes = _parsed(text)
    return replace(found, **changes)


def _parsed(text: str) -> tuple[BatchNormSpec, dict[str, Any]]:
    name, *given = [part.strip() for part in text.split(",")]
    changes: dict[str, Any] = {}
    for change in given:
        field, equals, value = change.partition("=")
        if not equals or field not in _FIELDS:
            msg = f"specification {text!r}: expected field=value, got {change!r}. Fields: "
            raise SpecError(msg + ", ".join(sorted(_FIELDS)) + ".")
        changes[field] = _value(value)
    return preset(name).spec, changes


def spec_of(layer: Layer, given: Spec | None, world: World) -> tuple[BatchNormSpec, str]:
    """The specification of one batch norm, and where it comes from.

    Args:
        layer: With what the file says of it.
        given: One for all, or by regular expressions over the names of layers.
        world: Its framework, for the default.

    Returns:
        The specification, and `"given"`, `"stored"` or `"default of <preset>"`.

    Raises:
        SpecError: A name that is unknown.
    """
    if "spec" in layer.facts:
        found, origin = layer.facts["spec"], "stored"
    else:
        key = _preset_for(layer, world)
        found, origin = preset(key).spec, f"default of {key}"
    if isinstance(given, Mapping):
        for pattern, one in given.items():
            if re.fullmatch(pattern, layer.name):
                return parse_spec(one), "given"
    elif isinstance(given, str):
        named, changes = _parsed(given)
        return replace(_with_stored(named, layer), **changes), "given"
    elif given is not None:
        return given, "given"
    if layer.facts.get("eps") is not None:
        origin = "stored"
    return _with_stored(found, layer), origin


def _with_stored(spec: BatchNormSpec, layer: Layer) -> BatchNormSpec:
    """What the file says of the layer stands above what is usual."""
    facts = layer.facts
    changes: dict[str, Any] = {
        name: facts[name] for name in ("eps", "ema_weight") if facts.get(name) is not None
    }
    attributes = facts.get("attributes", {})
    for name, field in (
        ("fix_gamma", "weight_fixed"),
        ("virtual_batch_size", "virtual_batch_size"),
    ):
        if attributes.get(name) is not None:
            changes[field] = attributes[name]
    if "moving_stddev" in layer.tensors or "renorm_mean_weight" in layer.tensors:
        changes["train_statistics"] = "renorm"
        if "moving_stddev" in layer.tensors:
            changes["tracked_second_moment"] = "stddev"
    if "biased_mean" in layer.tensors:
        changes["debias"] = "mean"
    return replace(spec, **changes)


def _preset_for(layer: Layer, world: World) -> str:
    last = re.split(r"[/.]", layer.name)[-1]
    if world.key == "tf1" and re.fullmatch(r"BatchNorm(_\d+)?", last):
        return "contrib"
    if world.key == "equinox" and "count" in layer.tensors:
        return "equinox-batch"
    return world.spec


def _value(text: str) -> Any:
    plain = {"none": None, "true": True, "false": False}
    if text.lower() in plain:
        return plain[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

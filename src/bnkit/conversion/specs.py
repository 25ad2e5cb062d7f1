"""Which specification the batch norms of a source have: as told, as stored, as usual."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from bnkit.conversion.gather import Side
from bnkit.conversion.layer import Layer
from bnkit.conversion.worlds import World
from bnkit.core import BatchNormSpec, ConversionError, InputError, SpecError, preset

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


def check_patterns(given: Spec | None, side: Side, option: str) -> None:
    """Refuse specifications for layers that are not there.

    Args:
        given: As for `spec_of`.
        side: Whose batch norms it is about.
        option: What it is called, for the message.

    Raises:
        InputError: A pattern is no regular expression, or fits no batch norm.
    """
    if not isinstance(given, Mapping):
        return
    names = [layer.name for layer in side.layers if layer.is_batch_norm]
    for pattern in given:
        try:
            hit = any(re.fullmatch(pattern, name) for name in names)
        except re.error as error:
            msg = f"{option} {pattern!r}: expected a regular expression, got: {error}."
            raise InputError(msg) from error
        if not hit:
            msg = (
                f"{option} {pattern!r}: expected to fit a batch norm, got none. They are: "
                f"{', '.join(map(repr, names[:12])) or 'none'}."
            )
            raise InputError(msg)


def _with_stored(spec: BatchNormSpec, layer: Layer) -> BatchNormSpec:
    """What the file says of the layer stands above what is usual."""
    facts = layer.facts
    changes: dict[str, Any] = {
        name: facts[name] for name in ("eps", "ema_weight") if facts.get(name) is not None
    }
    attributes = facts.get("attributes", {})
    if attributes.get("fix_gamma") is not None:  # MXNet writes the word
        changes["weight_fixed"] = str(attributes["fix_gamma"]).lower() in ("true", "1")
    if attributes.get("virtual_batch_size") is not None:
        changes["virtual_batch_size"] = attributes["virtual_batch_size"]
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


def with_unnamed(layer: Layer, spec: BatchNormSpec) -> Layer:
    """Give the variable that Keras 3 stores without a name its role.

    Without a configuration a batch norm with three variables may lack its weight or its bias.

    Args:
        layer: Its role `unnamed` is one of both.
        spec: Says whether it has a weight and a bias.

    Returns:
        The layer with that role.

    Raises:
        ConversionError: The specification has both or none.
    """
    if "unnamed" not in layer.tensors:
        return layer
    if spec.has_weight == spec.has_bias:
        msg = (
            f"batch norm {layer.name!r}: expected a name or a configuration for the variable "
            f"{layer.tensors['unnamed']!r}, got neither: it is weight or bias. Say which: spec="
            f"{{{layer.name!r}: 'keras3,has_weight=false'}}, or has_bias=false; or take the "
            ".keras file."
        )
        raise ConversionError(msg)
    role = "weight" if spec.has_weight else "bias"
    renamed = {role if r == "unnamed" else r: n for r, n in layer.tensors.items()}
    sizes = {role if r == "unnamed" else r: s for r, s in layer.shapes.items()}
    return replace(layer, tensors=renamed, shapes=sizes)


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

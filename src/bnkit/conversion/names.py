"""The names of tensors taken apart: layer, role, and what is no part of the network."""

import re
from collections.abc import Collection
from typing import NamedTuple

EMA = "ExponentialMovingAverage"
_SUFFIXES = re.compile(r"(?::0|/\.ATTRIBUTES/VARIABLE_VALUE|[./](?:value|raw_value))$")
_SYMBOL = re.compile(r"(?:arg|aux):(?P<scope>.+)_(?P<leaf>[a-z]+(?:_mean|_var)?)")
_POSITION = re.compile(r"(?P<scope>.*?)/?vars/(?P<leaf>\d+)")
_COLLECTIONS = ("params", "batch_stats", "state")
_TRAINING = re.compile(
    r"(?:^|[/.])(?:optimizer|_optimizer|optimizer_weights|opt_state|\.OPTIMIZER_SLOT|training|"
    r"optimizer_state_dict|optimizer_states|lr_schedulers?)(?:[/.]|$)"
)
_COUNTERS = re.compile(
    r"(?:^|[/.])(?:global_step|step|epoch|save_counter|beta[12]_power|_CHECKPOINTABLE_OBJECT_GRAPH|"
    r"iterations?|learning_rate|~/var_ema/counter)$"
)
_RANDOM = re.compile(r"seed_generator|(?:^|/)rngs?/")
_METRIC = re.compile(r"(?:^|/)(?:keras_api/)?metrics/")


class Parts(NamedTuple):
    """A name taken apart.

    Attributes:
        scope: The layer.
        leaf: What the tensor is called within it.
    """

    scope: str
    leaf: str


def take_apart(name: str) -> Parts:
    """Scope and leaf of the name of a tensor, without what a format adds.

    Args:
        name: As in the file.

    Returns:
        Both; the scope of a model that is a single layer is empty.

    Example:
        >>> take_apart("params/Conv_0/kernel"), take_apart("layers/conv2d/vars/0")
        (Parts(scope='Conv_0', leaf='kernel'), Parts(scope='layers/conv2d', leaf='0'))
        >>> take_apart("model/dense/kernel/.ATTRIBUTES/VARIABLE_VALUE").scope
        'model/dense'
    """
    name = _SUFFIXES.sub("", name)
    if match := _SYMBOL.fullmatch(name) or _POSITION.fullmatch(name):
        return Parts(match["scope"], match["leaf"])
    separator = "/" if "/" in name else "."
    parts = name.split(separator)
    if parts[0] in _COLLECTIONS and len(parts) > 2:
        parts = parts[1:]
    return Parts(separator.join(parts[:-1]), parts[-1])


def aside(name: str, names: Collection[str], dtype: str) -> str:
    """Why a tensor is no part of the network; empty if it may be one.

    Args:
        name: Of the tensor.
        names: Of all tensors in the file.
        dtype: Of the tensor.

    Returns:
        A few words.

    Example:
        >>> names = {"a/kernel", "a/kernel/Momentum", "a/kernel/ExponentialMovingAverage"}
        >>> [aside(n, names, "float32") for n in sorted(names)]
        ['', 'average: a/kernel', 'optimizer: Momentum']
    """
    plain = _SUFFIXES.sub("", name)
    owner, _, slot = plain.rpartition("/")
    if owner and owner in names:
        return f"average: {owner}" if slot == EMA else f"optimizer: {slot}"
    for pattern, reason in (
        (_TRAINING, "optimizer"),
        (_COUNTERS, "counter of the training loop"),
        (_RANDOM, "random state"),
        (_METRIC, "metric"),
    ):
        if pattern.search(plain):
            return reason
    if dtype in ("string", "bool"):
        return f"no number: {dtype}"
    return ""


def template(name: str) -> str:
    """A name without its numbers: what numbered layers have in common.

    Args:
        name: Of a layer.

    Returns:
        The name with the numbers taken out.

    Example:
        >>> template("net/conv2d_1/bn"), template("net/conv2d/bn")
        ('net/conv2d/bn', 'net/conv2d/bn')
        >>> template("blocks.3.conv1")
        'blocks.#.conv'
    """
    return "/".join(_plain_part(p) for p in name.split("/"))


def numbers(name: str) -> tuple[tuple[int, ...], ...]:
    """The numbers in a name, one tuple per part, by which layers of one template are in order."""
    return tuple(_numbers_of(p) for p in name.split("/"))


def words(name: str) -> frozenset[str]:
    """The words in a name, without numbers, for a comparison across frameworks."""
    spread = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    found = {str(_SYNONYMS.get(w, w)) for w in re.findall(r"[a-z]+", spread.lower())}
    return frozenset(found - _EMPTY)


# Conv2D and batch_norm2d say the dimension, not a place in a sequence.
_DIMENSION = re.compile(r"(?<=[a-zA-Z])([123]_?[dD])(?![a-zA-Z0-9])")


def _plain_part(part: str) -> str:
    pieces = _DIMENSION.split(part)  # the dimensions at the odd places
    return "".join(p if i % 2 else _without_numbers(p) for i, p in enumerate(pieces))


def _without_numbers(text: str) -> str:
    return ".".join("#" if w.isdigit() else re.sub(r"_?\d+", "", w) for w in text.split("."))


def _numbers_of(part: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", _DIMENSION.sub("", part))))


_SYNONYMS = {
    "batchnorm": "bn",
    "batch": "bn",
    "norm": "bn",
    "normalization": "bn",
    "fc": "dense",
    "linear": "dense",
    "convolution": "conv",
    "downsample": "shortcut",
}
_EMPTY = {"layers", "layer", "with", "weights", "model", "net", "module", "d", "vars", "functional"}

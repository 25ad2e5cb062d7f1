"""Batch norms found by how frameworks name their tensors."""

import re
from collections.abc import Iterable

from bnkit.formats.checkpoint import BatchNormEntry

_LEAVES = {
    "weight": ("weight", "gamma", "scale"),
    "bias": ("bias", "beta", "offset"),
    "running_mean": ("running_mean", "moving_mean", "_mean", "mean"),
    "running_var": ("running_var", "moving_variance", "moving_var", "_variance", "var"),
    "count": ("num_batches_tracked", "moving_mean/local_step"),
    "biased_mean": ("moving_mean/biased",),
    **{
        name: (name,)
        for name in (
            "moving_stddev",
            "renorm_mean",
            "renorm_mean_weight",
            "renorm_stddev",
            "renorm_stddev_weight",
        )
    },
}
_ROLES = {leaf: role for role, leaves in _LEAVES.items() for leaf in leaves}
_ANY_LEAF = "|".join(map(re.escape, sorted(_ROLES, key=len, reverse=True)))
_PLAIN = re.compile(
    rf"(?:(?P<layer>.*)[/.])?(?P<leaf>{_ANY_LEAF})(?::0)?(?:/\.ATTRIBUTES/VARIABLE_VALUE)?"
)
_MXNET = re.compile(rf"(?:arg|aux):(?P<layer>.+)_(?P<leaf>{_ANY_LEAF})")
_HAIKU = re.compile(r"state/(?P<layer>.+)/~/(?P<leaf>(?:mean|var)_ema/(?:hidden|average|counter))")
_HAIKU_ROLES = {
    "mean_ema/average": "running_mean",
    "var_ema/average": "running_var",
    "mean_ema/hidden": "hidden_mean",
    "var_ema/hidden": "hidden_var",
    "mean_ema/counter": "count",
}
_COLLECTIONS = ("params", "batch_stats")  # where Flax and Haiku keep the two halves of a layer


def entries_by_name(names: Iterable[str]) -> tuple[BatchNormEntry, ...]:
    """Group tensors into batch norms: each has a running mean and a running variance.

    Args:
        names: Of tensors, as TensorFlow, Keras, PyTorch, Flax, Haiku, Paddle and MXNet make them.

    Returns:
        In the order of their first tensors. Layers that two tensors claim to be the same part of
        are left out.

    Example:
        >>> entry, = entries_by_name(["a/gamma", "a/moving_mean", "a/moving_variance", "b/kernel"])
        >>> entry.name, entry.tensors["weight"]
        ('a', 'a/gamma')
    """
    layers: dict[str, dict[str, str]] = {}
    twice = set()
    for name in names:
        layer, role = _part(name)
        if role:
            found = layers.setdefault(layer, {})
            if role in found:
                twice.add(layer)
            found[role] = name
    return tuple(
        BatchNormEntry(layer, found)
        for layer, found in layers.items()
        if layer not in twice and {"running_mean", "running_var"} <= found.keys()
    )


def _part(name: str) -> tuple[str, str]:
    """The layer and the role of a tensor; no role if it has none that batch norms know."""
    if match := _HAIKU.fullmatch(name):
        return match["layer"], _HAIKU_ROLES.get(match["leaf"], "")
    if match := _MXNET.fullmatch(name):
        return match["layer"], _ROLES[match["leaf"]]
    match = _PLAIN.fullmatch(name)
    if not match:
        return "", ""
    parts = (match["layer"] or "").split("/")
    half = len(parts) // 2
    if match["leaf"].startswith("moving_mean/") and parts[:half] == parts[half:]:
        parts = parts[:half]  # contrib repeats its scope in the names of the shadows
    for collection in _COLLECTIONS:
        if collection in parts:
            parts.remove(collection)
            break
    return "/".join(parts), _ROLES[match["leaf"]]

"""The arguments of `tf.layers.batch_normalization` in the words of `BatchNorm`."""

from typing import Any

from bnkit.core import SpecError

# TensorFlow's name -> ours, for the arguments that mean the same
_RENAMED = {
    "epsilon": "eps",
    "beta_initializer": "bias_initializer",
    "gamma_initializer": "weight_initializer",
    "moving_mean_initializer": "running_mean_initializer",
    "moving_variance_initializer": "running_var_initializer",
    "beta_regularizer": "bias_regularizer",
    "gamma_regularizer": "weight_regularizer",
    "beta_constraint": "bias_constraint",
    "gamma_constraint": "weight_constraint",
}
_SAME = ("axis", "center", "scale", "trainable", "name", "renorm", "renorm_clipping")
_SAME = (*_SAME, "virtual_batch_size", "adjustment")
_REASONS = {
    "inputs": "a layer is called: layer(x)",
    "training": "the mode belongs to the module: layer.train() and layer.eval()",
    "reuse": "a layer is used again by calling it again; the module holds its variables",
    "fused": (
        "kernels are chosen by themselves (bnkit.ops.explain(x)); what TensorFlow's fused kernel "
        "changes is the variance that is stored, and running_correction says that"
    ),
}
# What the arguments are in TensorFlow where they are not given, and not what ours are.
_DEFAULTS = {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, "renorm_momentum": 0.99}


def refuse_arguments(where: str, given: dict[str, Any]) -> None:
    """Raise `SpecError` that says what to write in place of an argument `BatchNorm` has not."""
    for name in given:
        if name in _RENAMED:
            reason = f"here it is called {_RENAMED[name]}; BatchNorm.from_tf takes TensorFlow's"
        else:
            reason = _REASONS.get(name, "there is no such argument")
        msg = f"{where}: {name}={given[name]!r} is not taken: {reason}."
        raise SpecError(msg)


def translated(where: str, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `tf.layers.batch_normalization` as those of `BatchNorm`.

    Args:
        where: Head of an error message.
        given: Arguments under TensorFlow's names; its defaults stand in for the others.

    Returns:
        The same under our names.

    Raises:
        SpecError: `inputs`, `training` or `reuse`; an unknown name; `fused=True` where
            TensorFlow has no fused kernel.
    """
    given = {**_DEFAULTS, **given}
    refused = {"inputs", "training", "reuse"} | (
        set(given) - {*_RENAMED, *_SAME, "momentum", "renorm_momentum", "fused"}
    )
    refuse_arguments(where, {name: given[name] for name in given if name in refused})
    ours = {name: given[name] for name in _SAME if name in given}
    ours |= {_RENAMED[name]: given[name] for name in _RENAMED if name in given}
    axis = ours["axis"]
    ours["axis"] = axis if isinstance(axis, int) else tuple(axis)
    # TensorFlow's momentum weighs the old average
    ours["momentum"] = 1 - given["momentum"]
    ours["renorm_momentum"] = 1 - given["renorm_momentum"]
    ours["running_correction"] = _stored_variance(where, given)
    # tf.layers keeps using the batch where it is not trainable, it only stops averaging
    ours["frozen_normalizes_with"] = "batch"
    return ours


def _stored_variance(where: str, given: dict[str, Any]) -> Any:
    fused = given.get("fused")
    if fused is None:
        return "fused"
    axis = given["axis"]
    several = not isinstance(axis, int) and len(axis) > 1
    against = {
        "renorm": given.get("renorm"),
        "virtual_batch_size": given.get("virtual_batch_size"),
        "adjustment": given.get("adjustment"),
        "several axes": several,
    }
    names = ", ".join(name for name, hit in against.items() if hit)
    if fused and names:
        msg = (
            f"{where}: fused=True is not taken with {names}: TensorFlow has no fused kernel for "
            "that. Leave fused out."
        )
        raise SpecError(msg)
    return 1 if fused else 0

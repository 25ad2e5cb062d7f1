"""`bnkit convert`: a checkpoint of one framework into a model or file of another."""

import json as json_format
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from bnkit.cli.console import out as console

if TYPE_CHECKING:
    from bnkit.conversion import ConversionPlan

Switch = Parameter(negative="")
Several = Parameter(negative="", consume_multiple=True)
_SECTIONS = ("rules", "spec", "target_spec", "leave", "flatten")


def convert(
    source: Path,
    target: Path | None = None,
    *,
    model: str | None = None,
    like: Path | None = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    to: str | None = None,
    spec: str | None = None,
    target_spec: str | None = None,
    rules: Path | None = None,
    leave: Annotated[tuple[str, ...], Several] = (),
    flatten: Annotated[tuple[str, ...], Several] = (),
    root: str = "",
    averages: Annotated[bool, Switch] = False,
    count: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    partial: Annotated[bool, Switch] = False,
    dry_run: Annotated[bool, Switch] = False,
    force: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
) -> None:
    """Move the numbers of a network into another framework; inference stays the same.

    Kernels are transposed, batch norms converted with their eps, and a table says which layer
    went where and why. Nothing is written unless every layer has its counterpart.

    Args:
        source: A checkpoint: TensorFlow (prefix, folder or .ckpt), Keras (.keras, .h5), PyTorch
            (.pt, .safetensors), Flax (.msgpack), Equinox, Haiku (.npz), ONNX, Caffe, Paddle, MXNet.
        target: The new file: .pt, .safetensors or .npz for a PyTorch model, .keras for a Keras
            one, or the format of --like.
        model: path.py:name or package.module:name of the model that receives the numbers, or of a
            function that builds it. It is run.
        like: Instead of a model, a file whose tensors are replaced in the new one.
        from_: The framework of the source, where its names do not tell: torch, tf1, tf2, keras3,
            flax, haiku, equinox, onnx, caffe, paddle, mxnet.
        to: The framework of the target: it is checked, and says how --like is laid out.
        spec: What the batch norms of the source mean: a name of bnkit spec, with changes such as
            keras3,eps=0.01.
        target_spec: The same of the batch norms of --like.
        rules: A JSON file: {"rules": {"regular expression": "name"}, "spec": {...}, "leave": [...],
            "flatten": {"fc": [7, 7]}}.
        leave: Patterns of tensors or layers of the target to leave as they are.
        flatten: fc=7x7 where the dense layer fc reads a flattened map of 7 by 7; fc=none where
            nothing is flattened.
        root: Only tensors of the source whose names begin so.
        averages: Take TensorFlow's exponential moving averages.
        count: Values per channel in a training batch, to judge Bessel's correction.
        partial: Allow tensors without a counterpart; they are listed.
        dry_run: Show the table; write nothing.
        force: Replace the new file if it exists.
        json: Print JSON instead of a table.

    Raises:
        InputError: Wrong or missing arguments.
    """
    from bnkit.core.errors import InputError

    if (model is None) == (like is None):
        msg = "bnkit convert: expected --model path.py:name or --like FILE, one of both."
        raise InputError(msg)
    if target is None and not dry_run:
        msg = "bnkit convert: expected the name of the new file, got none. Or pass --dry-run."
        raise InputError(msg)
    options = _options(rules, spec, target_spec, leave, flatten)
    options |= {"framework": from_, "root": root, "averages": averages}
    options |= {"count": count, "partial": partial}
    plan = _planned(source, _target(model, like), to, options)
    written = None
    if not dry_run and target is not None:
        written = plan.write(target, replace=force)
    if json:
        found = {**plan.to_dict(), "written": None if written is None else str(written)}
        console().print(json_format.dumps(found, indent=2, ensure_ascii=False))
        return
    console().print(str(plan))
    last = f"Written: {written}" if written else "Nothing was written (--dry-run)."
    console().print(last)


def _target(model: str | None, like: Path | None) -> Any:
    if like is not None:
        return like
    from bnkit.sources.callables import load_named, made_by

    text = str(model)
    found = load_named(text, "a model, or a function that builds one")
    return made_by(text, found, "a model") if not _is_model(found) else found


def _is_model(found: Any) -> bool:
    from torch import nn

    keras = any(c.__module__.startswith("keras.") for c in type(found).__mro__)
    return isinstance(found, nn.Module) or keras


def _planned(
    source: Path, target: Any, to: str | None, options: dict[str, Any]
) -> "ConversionPlan":
    from bnkit.conversion import convert as convert_network
    from bnkit.conversion import world
    from bnkit.core.errors import InputError

    wanted = world(to) if to is not None else None
    if isinstance(target, Path):
        options["target_framework"] = to
    plan = convert_network(source, target, **options)
    got = plan.sides[1].world.key
    if wanted is not None and got != wanted.key:
        msg = f"--to {to}: expected a target of {wanted.title}, got one of {got}."
        raise InputError(msg)
    return plan


def _options(
    rules: Path | None,
    spec: str | None,
    target_spec: str | None,
    leave: tuple[str, ...],
    flatten: tuple[str, ...],
) -> dict[str, Any]:
    from bnkit.core.errors import InputError

    found: dict[str, Any] = _read_rules(rules) if rules is not None else {}
    for name, value in (("spec", spec), ("target_spec", target_spec)):
        if value is not None and name in found:
            msg = f"--{name.replace('_', '-')}: expected it once, got it in {str(rules)!r} too."
            raise InputError(msg)
        if value is not None:
            found[name] = value
    found["leave"] = (*found.get("leave", ()), *leave)
    found["flatten"] = {**found.get("flatten", {}), **dict(map(_flattened, flatten))}
    return found


def _read_rules(path: Path) -> dict[str, Any]:
    from bnkit.core.errors import InputError

    try:
        found = json_format.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"--rules {str(path)!r}: expected a JSON file, got: {error}."
        raise InputError(msg) from error
    shapes = {"leave": list, "flatten": dict, "rules": dict}
    good = isinstance(found, Mapping) and found.keys() <= set(_SECTIONS)
    if not good or any(not isinstance(found.get(n, t()), t) for n, t in shapes.items()):
        msg = (
            f"--rules {str(path)!r}: expected an object with {', '.join(_SECTIONS)}, got "
            f"{', '.join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__}."
        )
        raise InputError(msg)
    return dict(found)


def _flattened(text: str) -> tuple[str, tuple[int, ...] | None]:
    from bnkit.core.errors import InputError

    name, equals, sizes = text.partition("=")
    if equals and sizes.lower() == "none":
        return name, None
    parts = sizes.split("x")
    if not equals or not all(p.isdigit() for p in parts):
        msg = f"--flatten {text!r}: expected layer=HxW, such as fc=7x7, or layer=none."
        raise InputError(msg)
    return name, tuple(int(p) for p in parts)

"""Something that a user names: `path.py:name` or `package.module:name`."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from bnkit.core.errors import InputError


def load_named(text: str, what: str) -> Any:
    """The object that `path.py:name` or `package.module:name` names. Runs that file.

    Args:
        text: As the user wrote it. Modules beside the file can be imported by it.
        what: What it should be, for the message.

    Returns:
        The object.

    Raises:
        InputError: No such file, module or name, or it fails to run.
    """
    place, _, name = text.rpartition(":")
    if not place or not name.replace(".", "").isidentifier():
        msg = f"{text!r}: expected path.py:name or package.module:name of {what}."
        raise InputError(msg)
    try:
        found: Any = _from_file(Path(place)) if place.endswith(".py") else _from_path(place)
    except Exception as error:
        if isinstance(error, InputError):
            raise
        msg = f"{text!r}: {place} failed to run: {type(error).__name__}: {error}"
        raise InputError(msg) from error
    module = found
    for part in name.split("."):
        if not hasattr(found, part):
            msg = (
                f"{text!r}: expected {what} called {name!r} in {place}, got none. It has: "
                f"{', '.join(_callables(module)) or 'nothing callable'}."
            )
            raise InputError(msg)
        found = getattr(found, part)
    return found


def load_model(text: str) -> nn.Module:
    """The model that a name stands for: a module, or something that returns one without arguments.

    Args:
        text: `path.py:name` or `package.module:name`.

    Returns:
        The model.

    Raises:
        InputError: It is neither.
    """
    found = load_named(text, "a model, or a function that builds one")
    if isinstance(found, nn.Module):
        return found
    made = made_by(text, found, "a model")
    if not isinstance(made, nn.Module):
        msg = f"{text!r}: expected a torch.nn.Module, got {type(made).__name__}."
        raise InputError(msg)
    return made


def made_by(text: str, factory: Any, what: str) -> Any:
    """What a callable returns without arguments.

    Args:
        text: Its name, for the message.
        factory: The callable.
        what: What it should make.

    Returns:
        Its result.

    Raises:
        InputError: It cannot be called so, or fails.
    """
    if not callable(factory):
        msg = f"{text!r}: expected {what}, or a function that makes it, got a value of type "
        raise InputError(msg + f"{type(factory).__name__}.")
    try:
        return factory()
    except Exception as error:
        msg = (
            f"{text!r}: expected a function that makes {what} without arguments, got "
            f"{type(error).__name__}: {error}"
        )
        raise InputError(msg) from error


def _callables(module: ModuleType) -> list[str]:
    """What the file itself defines, not what it imports."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) in {module.__name__, None}
    ]


def _from_path(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        msg = f"{str(path)!r}: expected a Python file, got none of that name."
        raise InputError(msg)
    name = f"bnkit_named_{abs(hash(path.resolve())):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"{str(path)!r}: expected a Python file, got one that Python cannot load."
        raise InputError(msg)
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python path.py` does
    sys.modules[name] = module  # dataclasses and pickle look here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

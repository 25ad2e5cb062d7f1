"""Subjects and data named on the command line."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from bnkit.core.errors import InputError

_PYTHON = re.compile(r"(?P<place>.+\.py|[\w.]+):(?P<name>[\w.]+)")
_INPUTS, _LABELS = ("x", "inputs", "images", "data"), ("y", "labels", "targets", "target")


def load_subject(text: str, weights: Path | None = None) -> Any:
    """The subject that a word of the command line names.

    Args:
        text: `path.py:name` or `package.module:name` of a module or of a function that returns
            one; or the path of a checkpoint or of a program.
        weights: A checkpoint to load into the module.

    Returns:
        A module, or the path.

    Raises:
        InputError: There is nothing like that, or the weights do not fit.
    """
    from torch import nn

    if _PYTHON.fullmatch(text) is None:
        if weights is not None:
            msg = f"--weights needs a module: name it as path.py:function, got {text!r}."
            raise InputError(msg)
        return Path(text)
    model = _called(text, "subject")
    if not isinstance(model, nn.Module):
        msg = f"{text}: expected a torch.nn.Module, got {type(model).__name__}."
        raise InputError(msg)
    if weights is not None:
        from bnkit.doctor.checkpoint import read_state_dict

        try:
            model.load_state_dict(read_state_dict(weights))
        except RuntimeError as error:
            msg = f"{weights}: expected the state_dict of {text}, got another one. {error}"
            raise InputError(msg) from error
    return model


def load_data(text: str | None) -> Any:
    """The batches that a word of the command line names.

    Args:
        text: `.npz` with arrays x and y (or inputs and labels), `.npy`, or `path.py:name` of a
            loader or of a function that returns one; None for no data.

    Returns:
        A tensor, a pair of tensors, or a loader.

    Raises:
        InputError: There is nothing like that.
    """
    if text is None:
        return None
    if _PYTHON.fullmatch(text):
        return _called(text, "data")
    path = Path(text)
    if path.suffix not in {".npz", ".npy"} or not path.is_file():
        msg = f"{text}: expected data as FILE.npz, FILE.npy or path.py:loader, found nothing such."
        raise InputError(msg)
    return _arrays(path)


def _arrays(path: Path) -> Any:
    import numpy as np
    import torch

    try:
        content = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return torch.from_numpy(np.asarray(content))
        arrays = {name: torch.from_numpy(content[name]) for name in content.files}
    except (OSError, ValueError, TypeError, EOFError) as error:
        msg = f"{path}: expected arrays of NumPy without pickled objects, got {error}."
        raise InputError(msg) from error
    inputs = next((arrays[n] for n in _INPUTS if n in arrays), None)
    labels = next((arrays[n] for n in _LABELS if n in arrays), None)
    if inputs is None:
        msg = f"{path}: expected an array named {' or '.join(_INPUTS)}, got {', '.join(arrays)}."
        raise InputError(msg)
    return inputs if labels is None else (inputs, labels)


def _called(text: str, what: str) -> Any:
    found = _PYTHON.fullmatch(text)
    place, name = (found["place"], found["name"]) if found else (text, "")
    try:
        value: Any = _module(place)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        msg = f"{what} {text}: expected something importable, got {type(error).__name__}: {error}."
        raise InputError(msg) from error
    is_code = callable(value) and not hasattr(value, "state_dict") and not hasattr(value, "dataset")
    return value() if is_code or isinstance(value, type) else value


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        msg = f"no such file: {place}"
        raise ImportError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    sys.modules[path.stem] = module  # inspect finds the source of its classes here
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module

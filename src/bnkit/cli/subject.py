"""Subjects named on the command line."""

import re
from pathlib import Path
from typing import Any

from bnkit.core.errors import InputError

_NAMED = re.compile(r"(.+\.py|[\w.]+):[\w.]+")


def load_subject(text: str, weights: Path | None = None, purpose: str = "infer") -> Any:
    """The subject that a word of the command line names.

    Args:
        text: `path.py:name` or `package.module:name` of a module or of a function that returns
            one; or the path of a checkpoint or of a program.
        weights: A checkpoint to load into the module.
        purpose: What the network is meant for.

    Returns:
        A module, or the path.

    Raises:
        InputError: There is nothing like that, or the weights do not fit.
    """
    if _NAMED.fullmatch(text) is None:
        if weights is not None:
            msg = f"--weights needs a module: name it as path.py:function, got {text!r}."
            raise InputError(msg)
        if text.endswith(".py"):
            msg = f"{text!r}: expected path.py:function that builds the model, got a file alone."
            raise InputError(msg)
        return Path(text)
    from bnkit.sources.callables import load_model
    from bnkit.sources.checkpoint import read_checkpoint

    model = load_model(text)
    if weights is not None:
        read_checkpoint(weights).load_into(model)
        # a file of numbers says nothing of modes, and a network that was just built trains
        if purpose in ("infer", "export") and all(m.training for m in model.modules()):
            model.eval()
    return model

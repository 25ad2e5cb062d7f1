"""A copy to experiment on, with the random generators put back afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from torch import nn

from bnkit.core.errors import InputError


@contextmanager
def set_aside(model: nn.Module) -> Iterator[nn.Module]:
    """A deep copy of the model in eval mode; the model and every random generator stay as they are.

    Args:
        model: Any module.

    Yields:
        The copy.

    Raises:
        InputError: The model cannot be copied.
    """
    with generators_kept():
        try:
            copy = deepcopy(model)
        except Exception as error:
            msg = (
                f"{type(model).__name__}: expected a model that copy.deepcopy can copy, got "
                f"{type(error).__name__}: {error}. The doctor works on a copy only; detach tensors "
                "kept as attributes, and leave locks and open files out of the model."
            )
            raise InputError(msg) from error
        for module in copy.modules():
            module.training = False  # not .eval(): train() may be overridden
        yield copy


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the generators of torch, NumPy and Python back at the end.

    Yields:
        Nothing.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)

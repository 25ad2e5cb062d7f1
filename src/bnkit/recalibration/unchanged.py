"""A model that is used and left as it was found: modes, buffers, forward methods, randomness."""

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def left_unchanged(model: nn.Module) -> Iterator[None]:
    """Within it a model is in eval mode; afterwards every bit is as before, also after an error.

    Flags are set one by one: `.eval()` may be overridden, for instance to merge weights. A buffer
    that a forward pass writes to in eval mode gets its numbers back in the same tensor.

    Args:
        model: Any module.

    Yields:
        Nothing.
    """
    modes = [(m, m.training) for m in model.modules()]
    buffers = [_kept(m, name, b) for m in model.modules() for name, b in m._buffers.items()]
    drawn = Randomness.now()
    try:
        for module, _ in modes:
            module.__dict__["training"] = False
        with torch.no_grad(), _eager():
            yield
    finally:
        for module, training in modes:
            module.__dict__["training"] = training
        for kept in buffers:
            kept.put_back()
        drawn.restore()


def _eager() -> AbstractContextManager[Any]:
    """Compiled parts run as they were written: their graphs know nothing of an observation."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and loading it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


class _Kept(NamedTuple):
    module: nn.Module
    name: str
    tensor: Tensor | None
    values: Tensor | None
    version: int

    def put_back(self) -> None:
        self.module._buffers[self.name] = self.tensor
        if self.tensor is not None and _version(self.tensor) != self.version:
            with torch.inference_mode(self.tensor.is_inference()):
                self.tensor.copy_(self.values)  # pyright: ignore[reportArgumentType]


def _kept(module: nn.Module, name: str, tensor: Tensor | None) -> _Kept:
    if tensor is None:
        return _Kept(module, name, None, None, 0)
    return _Kept(module, name, tensor, tensor.detach().clone(), _version(tensor))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class Randomness(NamedTuple):
    """The states of the global generators of torch, Python and NumPy, and of one of the data."""

    cpu: Tensor
    cuda: list[Tensor]
    python: Any
    numpy: Any
    own: tuple[torch.Generator, Tensor] | None

    @staticmethod
    def now(data: Any = None) -> "Randomness":
        """What they are now.

        Args:
            data: A loader whose own generator belongs to them.

        Returns:
            The states, to be restored.
        """
        generator = getattr(data, "generator", None)
        own = None
        if isinstance(generator, torch.Generator):
            own = generator, generator.get_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        legacy = np.random.get_state()  # noqa: NPY002  the global one is what others draw from
        return Randomness(torch.get_rng_state(), cuda, random.getstate(), legacy, own)

    def restore(self) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        if self.own is not None:
            generator, state = self.own
            generator.set_state(state)

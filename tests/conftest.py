"""Fixtures of the whole suite."""

import signal

import array_api_strict
import numpy as np
import pytest
import torch
from array_api_compat import numpy as np_compat
from array_api_compat import torch as torch_compat
from hypothesis import settings

# a shell starts its background jobs with Ctrl-C ignored, and every child inherits that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# one example can be slow on a busy machine; the count of examples bounds the time
settings.register_profile("bnkit", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("bnkit")


class Namespace:
    """One array namespace: arrays in from NumPy, and back."""

    def __init__(self, name, xp, make, back=np.asarray):
        self.name, self.xp, self.make, self.back = name, xp, make, back

    def __call__(self, value):
        return None if value is None else self.make(np.asarray(value))


NAMESPACES = {
    "numpy": Namespace("numpy", np_compat, np.asarray),
    "torch": Namespace("torch", torch_compat, lambda v: torch.tensor(v), lambda t: t.numpy()),
    "array_api_strict": Namespace("array_api_strict", array_api_strict, array_api_strict.asarray),
}


@pytest.fixture(params=NAMESPACES)
def space(request):
    return NAMESPACES[request.param]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  other libraries draw from the global generator

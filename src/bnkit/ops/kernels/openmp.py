"""Work in parallel on torch's own OpenMP threads.

A pool of our own beside torch's would put four threads on two cores in every training step, and
waking a Python thread takes longer than a small batch norm. So a compiled task is handed to the
OpenMP runtime that torch has loaded (GNU's, on Linux): the same threads, a few microseconds. It
may be called from several Python threads, as torch may. In a forked child those threads do not
exist; there, and where torch brings another runtime, the parts run one after the other.
"""

import ctypes
import os
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import binding
from numba import carray  # pyright: ignore[reportPrivateImportUsage]
from numba.core import types

from bnkit.ops.kernels.compiled import STRICT
from bnkit.ops.kernels.memory import SERIAL

# entries of a task's description that belong to this module
PARTS, RESERVED = 0, 1
_LENGTH = 32


def _runtime() -> ctypes.CDLL | None:
    folder = Path(torch.__file__).parent
    for place in (folder / "lib", folder.parent / "torch.libs"):
        for path in sorted(place.glob("libgomp*.so*")):
            library = ctypes.CDLL(str(path))
            if hasattr(library, "GOMP_parallel"):
                return library
    return None


_library = _runtime()
_usable = _library is not None


def _address(name: str) -> int:
    function = getattr(_library, name)
    return ctypes.cast(function, ctypes.c_void_p).value or 0


if _library is not None:
    _library.GOMP_parallel.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint,
        ctypes.c_uint,
    ]
    _library.GOMP_parallel.restype = None
    binding.add_symbol("bnkit_thread_number", _address("omp_get_thread_num"))
else:
    _zero = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    binding.add_symbol("bnkit_thread_number", ctypes.cast(_zero, ctypes.c_void_p).value or 0)

_thread_number: Any = types.ExternalFunction("bnkit_thread_number", types.int32())


def _after_fork() -> None:
    global _usable
    _usable = False


os.register_at_fork(after_in_child=_after_fork)


def threads(values: int, pieces: int) -> int:
    """How many parts to make of an array of that many values, which falls into that many pieces."""
    return 1 if values < SERIAL else max(1, min(torch.get_num_threads(), pieces))


class Task(NamedTuple):
    """A compiled `body(description, part)`, and the same as OpenMP threads call it."""

    body: Any
    entry: Any


# set anew for each task
body: Any = None


def _entry(pointer: Any) -> None:
    description = carray(pointer, _LENGTH, np.int64)
    part = _thread_number()
    if part < description[PARTS]:
        body(description, part)


def task(function: Any) -> Task:
    """Prepare a compiled function of an int64 array and the number of a part for `run`."""
    variant = FunctionType(_entry.__code__, {**globals(), "body": function}, "entry")
    variant.__qualname__ = f"entry_{function.py_func.__qualname__}"
    variant.__module__ = __name__
    signature = types.void(types.CPointer(types.int64))
    return Task(function, numba.cfunc(signature, cache=True, fastmath=STRICT)(variant))


def run(work: Task, parts: int, numbers: tuple[int, ...]) -> None:
    """Run all parts of a task.

    Args:
        work: What `task` made.
        parts: How many.
        numbers: Addresses and sizes; the task finds them from entry `RESERVED` on.
    """
    description = np.empty(_LENGTH, np.int64)
    description[PARTS] = parts
    description[RESERVED : RESERVED + len(numbers)] = numbers
    if parts > 1 and _usable and _library is not None:
        _library.GOMP_parallel(work.entry.address, description.ctypes.data, parts, 0)
        return
    for part in range(parts):
        work.body(description, part)

"""Compiled work on torch's own OpenMP threads.

A pool of our own beside torch's would put four threads on two cores in every training step, and
waking a Python thread takes longer than a small batch norm. So compiled work is handed to the
OpenMP runtime that torch has loaded (GNU's, on Linux): the same threads, a few microseconds. It
may be called from several Python threads, as torch may. In a forked child those threads do not
exist; there, and where torch brings another runtime, one thread does all.

What a call needs, addresses and sizes and numbers, travels as bytes: that costs Python a
microsecond, where handing over arrays costs ten.
"""

import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import binding
from numba import carray  # pyright: ignore[reportPrivateImportUsage]
from numba.core import types
from numba.extending import intrinsic

from bnkit.ops.kernels.compiled import STRICT

# Below this many values waking the other threads costs more than it saves.
_SERIAL = 1 << 15
# numbers in a description, at most
_LONGEST = 32


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


# what stands in for functions that no runtime offers; the addresses are only good while they live
_instead: list[Any] = []


def _external(name: str, alone: Callable, result: Any) -> Any:
    """A function of the OpenMP runtime as compiled code calls it, or what one thread would get."""
    symbol = f"bnkit_{name}"
    function = getattr(_library, name, None)
    if function is None:
        _instead.append(numba.cfunc(result())(alone))
        address = _instead[-1].address
    else:
        address = ctypes.cast(function, ctypes.c_void_p).value
    binding.add_symbol(symbol, address or 0)
    return types.ExternalFunction(symbol, result())


thread_number: Any = _external("omp_get_thread_num", lambda: 0, types.int32)
team_size: Any = _external("omp_get_num_threads", lambda: 1, types.int32)
wait_for_all: Any = _external("GOMP_barrier", lambda: None, types.void)

_parallel: Any = None
if _library is not None:
    _form = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint)
    _parallel = _form(("GOMP_parallel", _library))


def _after_fork() -> None:
    global _usable
    _usable = False


os.register_at_fork(after_in_child=_after_fork)


def threads(values: int, pieces: int) -> int:
    """How many threads to ask for, for so many values, which fall into so many pieces."""
    if values < _SERIAL or not _usable:
        return 1
    return max(1, min(torch.get_num_threads(), pieces))


class Region(NamedTuple):
    """Compiled work as OpenMP threads call it: its address, and a way to call it here."""

    address: int
    call: Any
    keep: Any


@intrinsic
def _as_pointer(typing_context: Any, address: Any) -> Any:  # noqa: ARG001  Numba's form
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate


# what Numba makes of the intrinsic takes one argument less than Python sees
pointer: Any = _as_pointer

# set anew for each region
body: Any = None


def _entry(description: Any) -> None:
    body(carray(description, _LONGEST, np.int64), thread_number(), team_size())


def region(function: Any) -> Region:
    """Prepare a compiled `function(description, part, parts)` for `run`."""
    variant = FunctionType(_entry.__code__, {**globals(), "body": function}, "entry")
    variant.__qualname__ = f"entry_{function.py_func.__qualname__}"
    variant.__module__ = __name__
    signature = types.void(types.CPointer(types.int64))
    entry: Any = numba.cfunc(signature, cache=True, fastmath=STRICT)(variant)
    call = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(entry.address)
    return Region(entry.address, call, entry)


def layout(whole: int, real: int) -> struct.Struct:
    """Packs so many whole numbers and so many float64 into a description."""
    return struct.Struct(f"={whole}q{real}d")


def run(work: Region, parts: int, description: bytes) -> None:
    """Run a region with at most so many threads."""
    if parts > 1:
        _parallel(work.address, description, parts, 0)
    else:
        work.call(description)

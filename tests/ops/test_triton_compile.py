"""The Triton kernels through the real compiler, down to machine code, without a GPU."""

from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("a GPU is here: test_triton_kernels.py compiles for it", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget

from bnkit.ops.kernels import triton_backward as backward
from bnkit.ops.kernels import triton_forward as forward
from bnkit.ops.kernels.triton_config import MERGE, Constants, accumulating, streaming

EPS = 1e-5


class _Driver:
    """What the compiler asks of a driver."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, _device):
        return 0


def compiled(shape, dtype, act):
    """Every kernel for one shape; what fails to compile raises."""
    n, c, s = shape
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x, v = torch.empty(16, dtype=dtype), torch.empty(16, dtype=wide)
    parameters = torch.empty(16), None
    statistics = v, v, n * s
    large, small = (f(shape, wide.itemsize, 132) for f in (streaming, accumulating))
    fixed = [Constants(*t, act, 0.1, EPS) for t in (large.tile, small.tile, MERGE)]
    work = [(launch.tiles, launch.each, shape) for launch in (large, small)]
    warps = [{"grid": launch.grid, "num_warps": launch.num_warps} for launch in (large, small)]
    one = {"grid": (1,), "num_warps": 4}
    frozen = (v, v, 1)
    return {
        "moments": forward.moments_kernel.warmup(x, v, shape, work[0][:2], large.tile, **warps[0]),
        "merge": forward.merge_kernel.warmup(x, v, v, (5, c, s), MERGE, **one),
        "normalize": forward.normalize_kernel.warmup(
            (x, x, x), parameters, statistics, work[0], fixed[0], **warps[0]
        ),
        "evaluate": forward.normalize_kernel.warmup(
            (x, None, x), (None, None), frozen, work[0], fixed[0], **warps[0]
        ),
        "sums": backward.sums_kernel.warmup(
            (x, x, x), v, (parameters, statistics), work[1], fixed[1], **warps[1]
        ),
        "finish": backward.finish_kernel.warmup(v, v, statistics, (5, c), fixed[2], **one),
        "gradient": backward.gradient_kernel.warmup(
            (x, x, None), (x, None), (parameters, statistics, v), work[0], fixed[0], **warps[0]
        ),
    }


@pytest.mark.parametrize(
    ("shape", "dtype", "act", "capability"),
    [
        ((8, 64, 3136), torch.float32, "silu", 90),
        ((25088, 64, 1), torch.bfloat16, "relu", 90),
        ((2, 3, 49), torch.float16, "leaky_relu", 80),
        ((33, 5, 1), torch.float64, "leaky_relu", 80),
        ((1, 1, 1), torch.float32, "none", 80),  # every size is a constant to the compiler
    ],
    ids=str,
)
def test_compiles(monkeypatch, tmp_path, shape, dtype, act, capability):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", _Driver(capability))
    kernels = compiled(shape, dtype, act)
    assert all(kernel.asm["cubin"] for kernel in kernels.values())
    # sizes that are multiples of 16 are read 16 bytes at a time
    if shape[0] * shape[2] >= 4096:
        for name in ("moments", "normalize", "evaluate", "sums", "gradient"):
            assert "ld.global.v4" in kernels[name].asm["ptx"], name
            assert ".local" not in kernels[name].asm["ptx"], (
                name
            )  # nothing spilled by the front end
    if dtype is torch.float64:
        # eps and the slope as they are, not as float32 has them
        assert "0d3EE4F8B588E368F1" in kernels["normalize"].asm["ptx"]
        assert "0d3FB999999999999A" in kernels["normalize"].asm["ptx"]

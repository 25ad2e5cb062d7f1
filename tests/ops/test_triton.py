"""The Triton kernel on a machine without a GPU: what it refuses, how it is launched, its tests.

The kernels themselves are in `test_triton_kernels.py`. Triton reads `TRITON_INTERPRET` when it is
imported, and the compiler of torch may have imported it before, so that they run in a process of
their own.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bnkit.ops import KernelUnavailableError, explain, kernel_names, use_kernel
from bnkit.ops.kernels import triton_gpu
from bnkit.ops.kernels.triton_config import accumulating, streaming

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
def test_the_kernels_in_the_interpreter():
    environment = {
        k: v for k, v in os.environ.items() if k not in ("BNKIT_KERNEL", "PYTEST_ADDOPTS")
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"),
            str(Path(__file__).with_name("test_triton_kernels.py")),
        ],
        cwd=ROOT,
        env={**environment, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it measures")
def test_the_benchmark_runs(tmp_path):
    script, result = ROOT / "benchmarks" / "gpu.py", tmp_path / "gpu.json"
    environment = {k: v for k, v in os.environ.items() if k != "BNKIT_KERNEL"}
    command = [sys.executable, str(script), "--smoke", "--dtypes", "float32"]
    interpreted = {**environment, "TRITON_INTERPRET": "1"}
    command += ["--json", str(result)]
    done = subprocess.run(command, env=interpreted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    kinds = {(r["operator"], r["direction"], r["memory_format"], r["provider"]) for r in rows}
    assert len(kinds) == 3 * 2 * 2 * 2
    assert all(r["gb_per_second"] > 0 and r["copy_gb_per_second"] > 0 for r in rows)
    # without a GPU there is nothing to measure
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command[:2], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stdout


def test_preferred_to_the_reference_only():
    names = kernel_names()
    assert names.index("numba") < names.index("triton") < names.index("reference")


def test_core_users_import_no_triton():
    code = "import sys, bnkit.ops, torch; bnkit.ops.explain(torch.zeros(2, 3)); "
    code += "assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_triton
def test_refuses_the_cpu_even_when_forced():
    x = torch.zeros(4, 3, 2, 2)
    rows = {row.name: row for row in explain(x).candidates}
    assert rows["triton"].reason == "it runs on CUDA, x is on cpu"
    with use_kernel("triton"), pytest.raises(KernelUnavailableError, match="x is on cpu"):
        torch.ops.bnkit.batch_norm_train(x, None, None, None, 1e-5, "none", 0.0)


def test_refuses_without_triton(monkeypatch):
    monkeypatch.setattr(triton_gpu, "_INSTALLED", False)
    assert triton_gpu.refuses(torch.zeros(2, 3)) == "Triton is not installed"


def test_refuses_an_old_gpu(monkeypatch):
    monkeypatch.setattr(triton_gpu, "_INSTALLED", True)
    monkeypatch.setattr(triton_gpu, "_capability", lambda _: (7, 5))
    reason = triton_gpu._no_device(torch.device("cuda", 0))
    assert reason == "it needs compute capability (8, 0), cuda:0 has (7, 5)"


SHAPES = [
    *((n, c, s) for n in (1, 3, 64) for c in (1, 31, 1025, 2048) for s in (1, 2, 49, 3136, 65537)),
    (10**7, 3, 1),
    (2, 3, 2**30),
]


@pytest.mark.parametrize("heuristic", [streaming, accumulating])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_launch_covers_the_tensor_once(heuristic, shape):
    n, c, s = shape
    for itemsize, processors in ((4, 132), (8, 1)):
        launch = heuristic(shape, itemsize, processors)
        tile, (blocks, parts) = launch.tile, launch.grid
        assert all(size & (size - 1) == 0 for size in tile)
        assert (blocks - 1) * tile.channels < c <= blocks * tile.channels
        assert (parts - 1) * launch.each < launch.tiles <= parts * launch.each
        assert launch.tiles == -(-n // tile.planes) * -(-s // tile.span)
        assert parts <= 65535
        assert tile.planes * tile.span * tile.channels * itemsize <= 4 * 4096
        assert launch.num_warps in (1, 2, 4, 8)


@pytest.mark.parametrize("shape", [(32, 64, 3136), (256, 1024, 1), (4, 3, 65536), (100352, 64, 1)])
def test_a_large_tensor_occupies_the_gpu(shape):
    blocks, parts = streaming(shape, 4, 132).grid
    values = shape[0] * shape[1] * shape[2]
    assert blocks * parts >= min(132, values // 8192)

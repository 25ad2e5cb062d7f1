"""A process of its own for native code and for running models, with limits."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, numpy_helper

from bnkit.core.errors import InputError

Arrays = dict[str, np.ndarray]

# The package around this one imports torch, which takes seconds and is not needed there.
_START = """
import sys, types
around = sys.modules["bnkit.fold"] = types.ModuleType("bnkit.fold")
around.__path__ = [sys.argv[1]]
from bnkit.fold.onnx.worker import main
main(sys.argv[2])
"""
_AROUND = Path(__file__).parents[1]
_MEMORY = 6 * 2**30  # bytes of address space, beside what models and inputs take
_COPIES = 24  # activations and copies, in multiples of models and inputs


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model may use while it is checked and run.

    Attributes:
        seconds: Of wall-clock time.
        memory: Bytes of address space, beside a multiple of the model's own size.
    """

    seconds: float = 300.0
    memory: int = _MEMORY


@dataclass(frozen=True, slots=True)
class Trial:
    """The inputs to compare two models on.

    Attributes:
        candidates: Sets of inputs; the first that the original takes is used.
        label: What the inputs are, for the proof.
        engines: What to run with, in order of preference.
    """

    candidates: Sequence[Sequence[Arrays]]
    label: str
    engines: Sequence[str] = ("onnxruntime", "reference")


def infer_shapes(model: ModelProto, limits: Limits) -> ModelProto:
    """The model with the shapes that ONNX can infer; as it is where inference fails.

    Args:
        model: Is not changed.
        limits: For the process.

    Returns:
        A model.
    """
    with tempfile.TemporaryDirectory(prefix="bnkit-onnx-") as name:
        folder = Path(name)
        (folder / "original.onnx").write_bytes(model.SerializeToString())
        _start(folder, {"task": "infer"}, limits, model.ByteSize())
        inferred = folder / "inferred.onnx"
        return ModelProto.FromString(inferred.read_bytes()) if inferred.is_file() else model


def compare(models: Mapping[str, ModelProto], trial: Trial, limits: Limits) -> dict[str, Any]:
    """Check models and compare their outputs.

    Args:
        models: "original" alone, to check it; or with "folded", and both as "wide" and
            "wide_folded" in float64.
        trial: What to compare them on.
        limits: For the process.

    Returns:
        What `worker.py` wrote, or `{"stage": ..., "error": ...}`.
    """
    size = sum(m.ByteSize() for m in models.values())
    with tempfile.TemporaryDirectory(prefix="bnkit-onnx-") as name:
        folder = Path(name)
        for key, model in models.items():
            (folder / f"{key}.onnx").write_bytes(model.SerializeToString())
        files = []
        for i, candidate in enumerate(trial.candidates):
            files.append([f"inputs-{i}-{j}.pb" for j in range(len(candidate))])
            for file, arrays in zip(files[-1], candidate, strict=True):
                size += _write_arrays(folder / file, arrays)
        job = {"task": "prove", "models": list(models), "label": trial.label}
        job |= {"engines": list(trial.engines), "candidates": files}
        return _start(folder, job, limits, size)


def _write_arrays(path: Path, arrays: Arrays) -> int:
    graph = GraphProto()
    graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    return path.write_bytes(graph.SerializeToString())


def _start(folder: Path, job: dict[str, Any], limits: Limits, size: int) -> dict[str, Any]:
    job["memory"] = limits.memory + _COPIES * size
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-P", "-c", _START, str(_AROUND), str(folder)]
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=limits.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"stage": "time", "error": f"not done after {limits.seconds:g} seconds"}
    except OSError as error:
        msg = f"fold_onnx: expected to start a Python process, got: {error.strerror or error}."
        raise InputError(msg) from error
    result = folder / "result.json"
    if done.returncode == 0 and result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1][:300] if lines else "nothing"
    return {"stage": "crash", "error": f"the process ended with {done.returncode}: {last}"}

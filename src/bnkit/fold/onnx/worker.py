"""What runs in a process of its own: checking, shape inference, and running models.

ONNX's checker, its shape inference and ONNX Runtime are native code, and a model is a program: a
file that crashes them, never ends or asks for all memory must not do so to the caller. So they
run here, under limits, and the caller reads `result.json` from the folder, if there is one.

The folder holds `job.json` and the models and inputs that it names; inputs are the initialisers
of a serialized GraphProto. Nothing is imported but this package, NumPy and ONNX.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, numpy_helper

from bnkit.fold.onnx.engines import ENGINES, Arrays, Run, reference_engine
from bnkit.fold.onnx.stress import is_float, stressed

OVERFLOWN = "the original gives NaN or infinity"
DIFFERENT = "the outputs differ by more than a rounding"
_SECONDS64 = 20.0


def main(name: str) -> None:
    """Do the job of a folder, and write `result.json`.

    Args:
        name: Of the folder, which holds `job.json`.
    """
    folder = Path(name)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    _limit_memory(job["memory"])
    try:
        result = {"infer": _infer, "prove": _prove}[job["task"]](folder, job)
    except MemoryError:
        result = {"stage": "memory", "error": "out of memory"}
    except RecursionError:
        result = {"stage": "run", "error": "graphs nested too deeply"}
    (folder / "result.json").write_text(json.dumps(result, allow_nan=False), encoding="utf-8")


def _limit_memory(size: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ImportError, ValueError, OSError):  # a system without such limits
        pass


def _infer(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    del job
    model = onnx.load(str(folder / "original.onnx"), load_external_data=False)
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # whatever it cannot infer, ranks are then unknown
        return {"error": _line(error)}
    (folder / "inferred.onnx").write_bytes(model.SerializeToString())
    return {}


def _prove(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    models = {name: (folder / f"{name}.onnx").read_bytes() for name in job["models"]}
    for name in ("original", "folded"):
        try:
            onnx.checker.check_model(models.get(name, models["original"]))
        except Exception as error:  # the checker raises several classes
            return {"stage": f"check {name}", "error": _line(error)}
    if "folded" not in models:
        return {"engine": "", "checks": []}
    failed: list[str] = []
    for engine in job["engines"]:
        found = _with_engine(engine, folder, job, models)
        if isinstance(found, dict):
            return {**found, "passed_over": failed}
        failed.append(f"{engine}: {found}")
    return {"stage": "run original", "error": "; ".join(failed)}


def _with_engine(
    engine: str, folder: Path, job: dict[str, Any], models: dict[str, bytes]
) -> dict[str, Any] | str:
    """The comparison, or why this engine cannot run the original."""
    try:
        title, start = ENGINES[engine]()
        run = start(models["original"])
    except MemoryError:
        raise
    except Exception as error:  # engines raise what they like
        return _line(error)
    given, problem = _first_that_runs(folder, job["candidates"], run)
    if given is None:
        return problem
    if not _same(run(given[0]), run(given[0])):
        return {"stage": "repeat", "error": "its output changes from run to run"}
    try:
        folded = start(models["folded"])
        variants = [(f"{job['label']}{name}", v) for one in given for name, v in stressed(one)]
        before = [run(v) for _, v in variants]
        checks = [_compare(n, b, folded(v)) for (n, v), b in zip(variants, before, strict=True)]
    except MemoryError:
        raise
    except Exception as error:
        return {"stage": "run folded", "error": f"{engine}: {_line(error)}"}
    return {"engine": title, "checks": checks, **_exact(models, variants, before, checks)}


def _exact(
    models: dict[str, bytes],
    variants: Sequence[tuple[str, Arrays]],
    before: Sequence[Sequence[np.ndarray]],
    checks: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Both models in float64, and how far rounding takes the original from that: its noise.

    The reference evaluator is slow, so that after a while no further inputs are begun; their noise
    is that of the first.

    Args:
        models: Serialized; "wide" and "wide_folded" are used.
        variants: Names and inputs.
        before: Outputs of the original for each.
        checks: Get their noise.

    Returns:
        The comparisons.

    Raises:
        MemoryError: The limit is reached.
    """
    if "wide" not in models:
        return {"checks64": [], "note64": "the model is too large for it"}
    start, found = time.monotonic(), []
    try:
        wide, wide_folded = (reference_engine()[1](models[n]) for n in ("wide", "wide_folded"))
        for (name, inputs), narrow, check in zip(variants, before, checks, strict=True):
            if found and time.monotonic() - start > _SECONDS64:
                check["noise"] = checks[0]["noise"]
                continue
            doubles = {n: a.astype(np.float64) if is_float(a) else a for n, a in inputs.items()}
            exact = wide(doubles)
            found.append(_compare(name, exact, wide_folded(doubles)))
            check["noise"] = _compare(name, exact, narrow, same_types=False)["relative_error"]
    except MemoryError:
        raise
    except Exception as error:
        return {"checks64": [], "note64": _line(error)}
    return {"checks64": found, "note64": ""}


def _first_that_runs(
    folder: Path, candidates: Sequence[Sequence[str]], run: Run
) -> tuple[list[Arrays] | None, str]:
    """The first set of inputs that the original takes."""
    problem = "no inputs"
    for files in candidates:
        inputs = [_arrays(folder / file) for file in files]
        try:
            for one in inputs:
                run(one)
        except MemoryError:
            raise
        except Exception as error:
            problem = _line(error)
        else:
            return inputs, ""
    return None, problem


def _arrays(path: Path) -> Arrays:
    graph = GraphProto.FromString(path.read_bytes())
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def _compare(
    name: str,
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    *,
    same_types: bool = True,
) -> dict[str, Any]:
    """Largest errors over all outputs, absolute and relative to each output's largest value."""
    found: dict[str, Any] = {"inputs": name, "max_error": 0.0, "relative_error": 0.0, "note": ""}
    found["noise"] = 0.0
    if len(before) != len(after):
        return {**found, "note": DIFFERENT}
    for b, a in zip(before, after, strict=True):
        if a.shape != b.shape or (same_types and a.dtype != b.dtype):
            return {**found, "note": DIFFERENT}
        error, relative, note = _errors(b, a)
        found["max_error"] = max(found["max_error"], error)
        found["relative_error"] = max(found["relative_error"], relative)
        found["note"] = found["note"] or note
    return found


def _errors(before: np.ndarray, after: np.ndarray) -> tuple[float, float, str]:
    """Absolute and relative error of one output, and why there is none."""
    if before.dtype.kind not in "iufb" and not is_float(before):
        return 0.0, 0.0, "" if np.array_equal(before, after) else DIFFERENT
    b, a = before.astype(np.float64), after.astype(np.float64)
    if not np.isfinite(b).all():
        return 0.0, 0.0, OVERFLOWN
    if b.size == 0:
        return 0.0, 0.0, ""
    if not np.isfinite(a).all():
        return 0.0, 0.0, DIFFERENT
    error, size = float(np.max(np.abs(a - b))), float(np.max(np.abs(b)))
    if not np.isfinite(error) or (error and not size):
        return 0.0, 0.0, DIFFERENT
    return error, error / size if error else 0.0, ""


def _same(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]

"""Folding the batch norms of ONNX files.

>>> import numpy as np, onnx
>>> from onnx import helper, numpy_helper
>>> from bnkit.fold.onnx import fold_onnx
>>> nodes = [
...     helper.make_node("Conv", ["x", "weight"], ["a"], "conv"),
...     helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"], "norm"),
... ]
>>> numbers = np.random.default_rng(0)
>>> shapes = {"weight": (4, 3, 3, 3), "s": 4, "b": 4, "m": 4, "v": 4}
>>> arrays = {n: numbers.uniform(0.5, 1, s).astype("float32") for n, s in shapes.items()}
>>> kind = onnx.TensorProto.FLOAT
>>> graph = helper.make_graph(
...     nodes,
...     "net",
...     [helper.make_tensor_value_info("x", kind, ["n", 3, 8, 8])],
...     [helper.make_tensor_value_info("y", kind, ["n", 4, 6, 6])],
...     [numpy_helper.from_array(a, n) for n, a in arrays.items()],
... )
>>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
>>> folding = fold_onnx(model)
>>> [n.op_type for n in folding.model.graph.node], folding.proof.holds
(['Conv'], True)
>>> print(folding.records[0])
norm: folded into Conv 'conv' before it
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bnkit.core.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto

    from bnkit.fold.onnx.folding import OnnxRecord as OnnxRecord
    from bnkit.fold.onnx.proof import OnnxCheck as OnnxCheck
    from bnkit.fold.onnx.proof import OnnxProof as OnnxProof
    from bnkit.fold.onnx.result import OnnxFolding as OnnxFolding

_RESULTS = {
    "OnnxCheck": "proof",
    "OnnxFolding": "result",
    "OnnxProof": "proof",
    "OnnxRecord": "folding",
}

__all__ = [*_RESULTS, "fold_onnx"]  # pyright: ignore[reportUnsupportedDunderAll]


def fold_onnx(
    source: "str | os.PathLike[str] | bytes | ModelProto",
    *,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    tolerance: float | None = None,
    engine: str | None = None,
    limit_seconds: float = 300.0,
) -> "OnnxFolding":
    """Fold the batch norms of an ONNX model, and prove that it still computes the same.

    BatchNormalization in inference form goes into the Conv, ConvTranspose, Gemm, MatMul or
    BatchNormalization before it, else into the linear node behind it, also past nodes that only
    move or add to channels. `(W u + b) scale + shift` is computed in float64 and rounded once.
    What is shared, given out or computed at run time is left alone, with the reason.

    Original and folded model are checked by `onnx.checker` and run on the same inputs in a process
    of its own: by ONNX Runtime where it is installed, else by `onnx.reference`, and by the latter
    in float64 too.

    Args:
        source: The path of a file, its bytes, or a model; it is not changed.
        inputs: Arrays by name, or several such dictionaries, to compare on. Without them normal
            numbers in the declared shapes.
        tolerance: Relative error that is allowed: largest difference over largest output. None
            takes 2e-6 for float32, 4e-3 for float16, 3e-2 for bfloat16, 1e-12 for float64, or four
            times the rounding error of the original where that is more.
        engine: "onnxruntime" or "reference"; None takes the first that runs the original.
        limit_seconds: For checking and running.

    Returns:
        The folded model, a record for each batch norm, and the proof.

    Raises:
        ModuleNotFoundError: Not onnx is missing but something else.
        InputError: The package onnx is missing, or the model is damaged, hostile, holds no batch
            norm, or cannot be run.
        FoldError: The folded model is invalid or differs by more than the tolerance.
    """
    try:
        from bnkit.fold.onnx.call import fold
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"onnx", "google", "ml_dtypes"}:
            raise
        msg = f"fold_onnx: expected the package {error.name}, got none. Install bnkit[onnx]."
        raise InputError(msg) from error
    return fold(source, inputs, tolerance, engine, limit_seconds)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _RESULTS:
        msg = f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}"
        raise AttributeError(msg)
    return getattr(import_module(f"bnkit.fold.onnx.{_RESULTS[name]}"), name)

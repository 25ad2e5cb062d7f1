"""The verb: fold the batch norms of an ONNX model and prove that nothing else changed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from bnkit.core.errors import FoldError, InputError
from bnkit.fold.onnx.folding import OnnxRecord, fold_document
from bnkit.fold.onnx.inputs import check_given, make_up
from bnkit.fold.onnx.process import Limits, Trial, infer_shapes
from bnkit.fold.onnx.proof import GIVEN, prove
from bnkit.fold.onnx.reading import Source, read_source
from bnkit.fold.onnx.result import OnnxFolding
from bnkit.fold.onnx.scopes import STANDARD, Document
from bnkit.fold.onnx.walking import NORM
from bnkit.fold.onnx.widening import widened

_LARGEST_WIDENED = 2**28  # bytes; in float64 there are four more copies, each twice as large
ENGINES = ("onnxruntime", "reference")


def fold(
    source: Any,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    tolerance: float | None,
    engine: str | None,
    limit_seconds: float,
) -> OnnxFolding:
    """See `bnkit.fold.onnx.fold_onnx`.

    Args:
        source: Path, bytes or model.
        inputs: To compare on.
        tolerance: Relative error that is allowed.
        engine: What to run with.
        limit_seconds: For checking and running.

    Returns:
        The folded model.

    Raises:
        InputError: An argument or the model is not what it should be.
        FoldError: The folded model differs.
    """
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        msg = f"tolerance: expected a number that is not negative, got {tolerance}."
        raise InputError(msg)
    if engine not in (None, *ENGINES):
        msg = f"engine: expected one of {list(ENGINES)}, got {engine!r}."
        raise InputError(msg)
    read = read_source(source)
    limits = Limits(seconds=limit_seconds)
    engines = ENGINES if engine is None else (engine,)
    try:
        with np.errstate(all="ignore"):  # NaN and infinity are found where they matter
            return _fold(read, inputs, tolerance, engines, limits)
    except RecursionError as error:
        msg = f"{read.name}: expected graphs within graphs to be fewer, got too many levels."
        raise InputError(msg) from error
    except (FoldError, InputError) as error:
        if read.name in str(error):
            raise
        raise type(error)(f"{read.name}: {str(error).rstrip('.')}.") from error


def rewrite(
    model: ModelProto, limits: Limits, shapes: ModelProto | None = None
) -> tuple[ModelProto, tuple[OnnxRecord, ...]]:
    """A copy of a model with its batch norms folded, without a proof.

    Args:
        model: Is not changed.
        limits: For the process that infers shapes, where ranks matter.
        shapes: The same graph with inferred shapes, if that is at hand.

    Returns:
        The copy, and a record for each batch norm.

    Raises:
        InputError: The graph contradicts itself or holds no batch norm.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    document = Document(copy, lambda m: infer_shapes(m, limits) if shapes is None else shapes)
    _check_opset(document)
    records = fold_document(document)
    if not records:
        msg = f"expected a model with batch norms, got none: it has no {NORM} node"
        raise InputError(msg)
    return copy, records


def _fold(
    read: Source,
    inputs: Any,
    tolerance: float | None,
    engines: Sequence[str],
    limits: Limits,
) -> OnnxFolding:
    model = read.model
    if model.training_info:
        msg = "expected a model for inference, got one with training information"
        raise InputError(msg)
    if model.graph.quantization_annotation:
        msg = "expected a model that is not quantized yet, got one with quantization annotations"
        raise InputError(msg)
    given = None if inputs is None else check_given(model, inputs)
    copy, records = rewrite(model, limits)
    models = {"original": model}
    trial = Trial([], "", engines)
    if any(r.action == "folded" for r in records):
        label = "made-up inputs" if given is None else GIVEN
        trial = Trial(make_up(model) if given is None else [given], label, engines)
        models["folded"] = copy
        if model.ByteSize() <= _LARGEST_WIDENED:
            wide = widened(model)
            models |= {"wide": wide, "wide_folded": rewrite(wide, limits)[0]}
    else:
        copy = model
    proof = prove(models, trial, limits, tolerance=tolerance, name=read.name)
    return OnnxFolding(
        model=copy, records=records, proof=proof, external=read.external, name=read.name
    )


def _check_opset(document: Document) -> None:
    newest = onnx.defs.onnx_opset_version()
    found = [o.version for o in document.model.opset_import if o.domain in STANDARD]
    if not found and document.nodes(NORM):
        msg = "expected an opset for the standard operators, got none"
        raise InputError(msg)
    if found and not 1 <= document.opset <= newest:
        msg = (
            f"expected an opset from 1 to {newest}, got {document.opset}, which "
            f"onnx {onnx.__version__} does not know; upgrade onnx"
        )
        raise InputError(msg)

"""What runs an ONNX model: ONNX Runtime where it is installed, else the reference evaluator."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bnkit.fold.onnx.operators import (
    batch_norm,
    convolve,
    convolve_transposed,
    same_pads,
    split_padding,
)

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], list[np.ndarray]]
Starter = Callable[[bytes], Run]


class EngineError(Exception):
    """An engine cannot run a model."""


def onnxruntime_engine() -> tuple[str, Starter]:
    """ONNX Runtime on the CPU without graph optimizations, which would fold batch norms too.

    Returns:
        Name and version, and what makes a model runnable.
    """
    import onnxruntime  # pyright: ignore[reportMissingImports]  an extra

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4

    def start(data: bytes) -> Run:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return lambda inputs: _ndarrays(session.run(None, inputs))

    return f"onnxruntime {onnxruntime.__version__}, optimizations off", start


def reference_engine() -> tuple[str, Starter]:
    """The reference evaluator of the package onnx, with operators of ours.

    Returns:
        Name and version, and what makes a model runnable.
    """

    def start(data: bytes) -> Run:
        operators: list[Any] = [BatchNormalization, Conv, ConvTranspose]
        evaluator = ReferenceEvaluator(ModelProto.FromString(data), new_ops=operators)

        def run(inputs: Arrays) -> list[np.ndarray]:
            with np.errstate(all="ignore"):
                return _ndarrays(evaluator.run(None, inputs))

        return run

    return f"onnx.reference {onnx.__version__}", start


ENGINES: dict[str, Callable[[], tuple[str, Starter]]] = {
    "onnxruntime": onnxruntime_engine,
    "reference": reference_engine,
}


class BatchNormalization(OpRun):
    """Inference form, every opset."""

    op_domain = ""

    def _run(self, x: np.ndarray, *parameters: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        if attributes.get("training_mode") or any(self.onnx_node.output[1:]):
            msg = "the reference evaluator runs no batch norm in training form"
            raise EngineError(msg)
        eps = attributes.get("epsilon")
        return (batch_norm(x, parameters, 1e-5 if eps is None else eps),)


class Conv(OpRun):
    """Any rank, groups, strides, dilations and paddings."""

    op_domain = ""

    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray]:
        found = _Settings(attributes, x)
        if found.same is not None:
            found.pads = same_pads(
                x.shape[2:], weight.shape[2:], found.strides, found.dilations, upper=found.same
            )
        y = convolve(
            x,
            weight,
            pads=found.pads,
            strides=found.strides,
            dilations=found.dilations,
            group=found.group,
        )
        return (_with_bias(y, bias),)


class ConvTranspose(OpRun):
    """Any rank, groups, strides, dilations, paddings and output shapes."""

    op_domain = ""

    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray]:
        found = _Settings(attributes, x)
        rank = x.ndim - 2
        extra = list(attributes.get("output_padding") or [0] * rank)
        wanted = attributes.get("output_shape")
        if wanted is None and found.same is not None:
            wanted = [s * t for s, t in zip(x.shape[2:], found.strides, strict=True)]
        if wanted is not None:
            for i, size in enumerate(list(wanted)[-rank:]):
                reach = (weight.shape[2 + i] - 1) * found.dilations[i] + 1
                total = found.strides[i] * (x.shape[2 + i] - 1) + extra[i] + reach - size
                extra[i] += max(-total, 0)
                found.pads[i] = split_padding(max(total, 0), upper=found.same is True)
        y = convolve_transposed(
            x,
            weight,
            pads=found.pads,
            strides=found.strides,
            dilations=found.dilations,
            group=found.group,
            output_padding=extra,
        )
        return (_with_bias(y, bias),)


class _Settings:
    """The attributes that both convolutions have, with their defaults."""

    def __init__(self, attributes: dict[str, Any], x: np.ndarray) -> None:
        rank = x.ndim - 2
        self.strides = list(attributes.get("strides") or [1] * rank)
        self.dilations = list(attributes.get("dilations") or [1] * rank)
        self.group = attributes.get("group") or 1
        pads = list(attributes.get("pads") or [0] * 2 * rank)
        self.pads = list(zip(pads[:rank], pads[rank:], strict=True))
        auto = attributes.get("auto_pad") or "NOTSET"
        self.same = {"SAME_UPPER": True, "SAME_LOWER": False}.get(auto)
        if auto == "VALID":
            self.pads = [(0, 0)] * rank


def _with_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if bias is None:
        return y
    return y + bias.reshape(-1, *[1] * (y.ndim - 2))


def _ndarrays(values: Any) -> list[np.ndarray]:
    if not all(isinstance(v, (np.ndarray, np.generic)) for v in values):
        msg = "an output is no tensor"
        raise EngineError(msg)
    return [np.asarray(v) for v in values]

"""An ONNX graph of one BatchNormalization node, executed by `bnkit.functional` on NumPy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bnkit.core import ONNX, BatchNormSpec, RunningStats
from bnkit.functional import batch_norm_eval, batch_norm_train

onnx = pytest.importorskip("onnx", reason="onnx holds the models and the backend tests")
backend_base = pytest.importorskip("onnx.backend.base")

FIRST_OPSET_WITH_TRAINING_MODE = 14
LAST_OPSET_WITH_IS_TEST = 6
LAST_OPSET_WITH_SPATIAL = 8


class BatchNormModel(backend_base.BackendRep):
    """A prepared model: `run` takes the values of its inputs, gives those of its outputs."""

    def __init__(self, model: Any, spec: BatchNormSpec = ONNX):
        (self.node,) = model.graph.node
        assert self.node.op_type == "BatchNormalization"
        self.opset = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self.names = [i.name for i in model.graph.input if i.name not in self.constants]
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}
        self.spec = replace(
            spec,
            eps=self.attributes.get("epsilon", spec.eps),
            ema_weight=1 - self.attributes.get("momentum", 1 - spec.ema_weight),
        )

    @property
    def training(self) -> bool:
        """What decides it depends on the opset: an attribute, or the number of outputs."""
        if self.opset >= FIRST_OPSET_WITH_TRAINING_MODE:
            return bool(self.attributes.get("training_mode", 0))
        if self.opset <= LAST_OPSET_WITH_IS_TEST:
            return not self.attributes.get("is_test", 0)
        return len(self.node.output) > 1

    def channel_axis(self, rank: int) -> int | tuple[int, ...]:
        """Axis 1, or every axis but the batch where the old attribute `spatial` is 0."""
        per_activation = self.opset <= LAST_OPSET_WITH_SPATIAL and not self.attributes.get(
            "spatial", 1
        )
        return tuple(range(1, rank)) if per_activation else self.spec.channel_axis

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        del kwargs
        values = self.constants | dict(zip(self.names, inputs, strict=True))
        x, weight, bias, mean, var = (values[name] for name in self.node.input)
        axis, state = self.channel_axis(x.ndim), RunningStats(mean, var, 1, 1.0)
        if not self.training:
            return (batch_norm_eval(x, weight, bias, state, self.spec, channel_axis=axis),)
        got = batch_norm_train(x, weight, bias, state, self.spec, channel_axis=axis)
        outputs = (got.y, got.state.mean, got.state.var)
        if self.opset < FIRST_OPSET_WITH_TRAINING_MODE:
            # saved_mean and saved_var: the batch's own statistics, for a backward pass
            every = replace(self.spec, ema_weight=1.0)
            batch = batch_norm_train(x, None, None, state, every, channel_axis=axis).state
            outputs += (batch.mean, batch.var)
        return tuple(np.asarray(o) for o in outputs[: len(self.node.output)])


def one_node(
    opset: int, arrays: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",), **attributes: Any
) -> Any:
    """A checked model whose inputs are `arrays`: x, scale, bias, mean and var, in that order.

    Args:
        opset: Version of the standard operators.
        arrays: Gives names, shapes and dtypes.
        outputs: Their number decides between inference and training below opset 14.
        **attributes: Of the node: epsilon, momentum, training_mode, is_test, spatial.

    Returns:
        An `onnx.ModelProto`.
    """
    node = onnx.helper.make_node("BatchNormalization", list(arrays), list(outputs), **attributes)
    kind = onnx.helper.np_dtype_to_tensor_dtype(arrays["x"].dtype)
    graph = onnx.helper.make_graph(
        [node],
        "batch_norm",
        [onnx.helper.make_tensor_value_info(k, kind, v.shape) for k, v in arrays.items()],
        [
            onnx.helper.make_tensor_value_info(name, kind, arrays["scale" if i else "x"].shape)
            for i, name in enumerate(outputs)
        ],
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    # the oldest file format that knows the opset: a runtime may not know the newest
    version = onnx.helper.find_min_ir_version_for(imports)
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=version)
    onnx.checker.check_model(model)
    return model

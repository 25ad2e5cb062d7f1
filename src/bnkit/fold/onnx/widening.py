"""A model in float64: what the algebra of a folding is checked in."""

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnkit.fold.onnx.norms import stored_values
from bnkit.fold.onnx.reading import subgraphs, tensors

_NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def widened(model: ModelProto) -> ModelProto:
    """A copy with every floating tensor in float64, and casts to narrower types widened too.

    It is for an evaluator that does not insist on declared types; declared types stay.

    Args:
        model: Is not changed.

    Returns:
        The copy.

    Raises:
        InputError: A tensor does not hold what its shape says.
    """
    wide = ModelProto()
    wide.CopyFrom(model)
    for tensor in tensors(wide):
        if tensor.data_type in _NARROW:
            values = stored_values(tensor, f"tensor {tensor.name!r}").astype("float64")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for nodes in (wide.graph.node, *(f.node for f in wide.functions)):
        for node in nodes:
            _widen_node(node)
    return wide


def _widen_node(node: NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _NARROW:
            attribute.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            _widen_constant(attribute)
        for graph in subgraphs(attribute):
            for inner in graph.node:
                _widen_node(inner)


def _widen_constant(attribute: AttributeProto) -> None:
    scalar = attribute.name == "value_float"
    values = [attribute.f] if scalar else list(attribute.floats)
    tensor = helper.make_tensor("", TensorProto.DOUBLE, [] if scalar else [len(values)], values)
    attribute.CopyFrom(helper.make_attribute("value", tensor))

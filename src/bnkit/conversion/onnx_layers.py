"""The layers of an ONNX model, by its nodes in their order."""

from collections.abc import Mapping
from typing import Any

from bnkit.conversion.gather import batch_norm_layer
from bnkit.conversion.kernels import DENSE_IN_OUT, DENSE_OUT_IN, Layout
from bnkit.conversion.layer import Kind, Layer
from bnkit.formats import Checkpoint

_KINDS: dict[str, Kind] = {
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "Gemm": "dense",
    "MatMul": "dense",
}


def onnx_layers(file: Checkpoint) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Convolutions, dense layers and batch norms whose numbers are initialisers.

    Args:
        file: A checkpoint of the format `onnx`.

    Returns:
        The layers in the order of the nodes, and initialisers that are constants of the graph,
        such as a shape.
    """
    norms = {e.name: e for e in file.batch_norms}
    nodes = file.metadata["nodes"]
    added = _added(nodes, file.shapes)
    found: list[Layer] = []
    for node in nodes:
        name = node["name"] or next(iter(node["outputs"]), "")
        if node["op"] == "BatchNormalization" and name in norms:
            found.append(batch_norm_layer(norms.pop(name), file.shapes))
        elif node["op"] in _KINDS and node["domain"] in ("", "ai.onnx"):
            layer = _kernel(node, name, file, added)
            found += [layer] if layer else []
    found += [batch_norm_layer(e, file.shapes) for e in norms.values()]  # of subgraphs
    used = {n for x in found for n in x.tensors.values()}
    return tuple(found), {n: "constant of the graph" for n in file.tensors if n not in used}


def _kernel(
    node: Mapping[str, Any],
    name: str,
    file: Checkpoint,
    added: Mapping[str, str],
) -> Layer | None:
    inputs, attributes, shapes = node["inputs"], node["attributes"], file.shapes
    if len(inputs) < 2 or inputs[1] not in shapes:
        return None
    kind = _KINDS[node["op"]]
    tensors = {"weight": inputs[1]}
    bias = inputs[2] if len(inputs) > 2 else added.get(node["outputs"][0])
    if bias and bias in shapes:
        tensors["bias"] = bias
    elif bias and not _is_zero(file, bias):
        return None  # computed when the graph runs
    kinds: tuple[Kind, ...] = (kind,)
    if kind == "conv" and attributes.get("group", 1) > 1 and shapes[inputs[1]][1] == 1:
        kinds = ("depthwise", "conv")
    scaled = any(attributes.get(a, 1.0) != 1.0 for a in ("alpha", "beta"))
    turned = node["op"] == "Gemm" and attributes.get("transB", 0)
    layouts: dict[Kind, Layout] = {}
    if kind == "dense":
        layouts["dense"] = DENSE_OUT_IN if turned else DENSE_IN_OUT
    return Layer(
        name=name,
        kinds=("other",) if scaled or attributes.get("transA") else kinds,
        tensors=tensors,
        shapes={role: shapes[n] for role, n in tensors.items()},
        layouts=layouts,
    )


def _is_zero(file: Checkpoint, name: str) -> bool:
    """Whether a value is a stored zero, spread: PyTorch's exporter writes `bias=False` so."""
    made = {out: node for node in file.metadata["nodes"] for out in node["outputs"]}
    while name not in file.tensors:
        node = made.get(name)
        if node is None or node["op"] not in ("Expand", "CastLike", "Cast", "Identity"):
            return False
        name = node["inputs"][0]
    return not file[name].any()


def _added(nodes: list[Mapping[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Vectors that are added to a value, by its name: the bias of a MatMul."""
    sums = [node["inputs"] for node in nodes if node["op"] == "Add"]
    return {
        value: vector
        for pair in sums
        for value, vector in (pair, pair[::-1])
        if vector in shapes and len(shapes[vector]) == 1 and value not in shapes
    }

"""The models of tests/data/onnx: what they give, and what folding makes of them."""

import json
from pathlib import Path

import numpy as np
import onnx

DATA = Path(__file__).parents[1] / "data" / "onnx"
CASES = json.loads((DATA / "cases.json").read_text(encoding="utf-8"))

# Batch norms folded, kept, refused.
COUNTS = {
    "bn_before_conv": (2, 1, 0),
    "bn_chain": (1, 2, 0),
    "conv1d": (2, 0, 0),
    "conv3d": (2, 0, 0),
    "dense_block": (0, 3, 0),
    "depthwise": (3, 0, 0),
    "external_data": (3, 0, 0),
    "if_branch": (0, 0, 2),
    "opset14_gemm": (2, 0, 0),
    "opset15_matmul": (2, 0, 0),
    "opset7_conv": (2, 0, 0),
    "opset7_spatial0": (0, 0, 1),
    "opset9_constants": (2, 0, 0),
    "opset9_convtranspose": (2, 0, 0),
    "opset9_five_outputs": (0, 0, 1),
    "runtime_scale": (0, 0, 1),
    "shared_conv": (1, 0, 2),
    "shared_weight": (2, 0, 0),
    "single_opset14": (0, 1, 0),
    "single_opset15": (0, 1, 0),
    "single_opset7": (0, 1, 0),
    "single_opset9": (0, 1, 0),
    "tf2onnx": (0, 1, 0),
    "torch_export_dynamo": (2, 0, 0),
    "torch_export_folded": (1, 0, 0),
    "torch_export_identity": (2, 0, 0),
    "torch_export_script": (2, 0, 0),
    "torch_export_training": (0, 0, 2),
    "training_mode_opset14": (0, 0, 1),
    "training_mode_opset15": (0, 0, 1),
}


def path_of(name):
    folder = DATA / name
    return folder / "model.onnx" if folder.is_dir() else DATA / f"{name}.onnx"


def feeds(name):
    """Inputs by name, one set for each evaluation, with the output to expect and its index."""
    model = onnx.load(path_of(name))
    given = {t.name for t in model.graph.initializer}
    first = next(v.name for v in model.graph.input if v.name not in given)
    outputs = [o.name for o in model.graph.output]
    arrays = np.load(DATA / f"{name}.npz", allow_pickle=False)
    more = {n.removeprefix("feed/"): arrays[n] for n in arrays.files if n.startswith("feed/")}
    for one in CASES[name]["evaluations"]:
        flags = {n: np.asarray(v) for n, v in one["flags"].items()}
        index = outputs.index(one["at"]) if one["at"] in outputs else 0
        yield {first: arrays["x"], **more, **flags}, arrays[one["output"]], index


def counts(records):
    return tuple(sum(r.action == a for r in records) for a in ("folded", "kept", "refused"))

"""The files that real frameworks wrote, and which tensor of a file a stored one is."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnkit.formats import Checkpoint

DATA = Path(__file__).parents[1] / "data" / "frameworks"
# what describes a network beside its tensors, or is read with another file
_BESIDE = {
    "prototxt",
    "mxnet symbol json",
    "onnx external data",
    "paddle PIR json",
    "protobuf",
    "text proto",
    "keras-weights-h5 shard",
}


@dataclass(frozen=True)
class Stored:
    """A file of a case."""

    case: str
    path: Path
    format: str
    names: dict[str, str]
    about: dict

    def __str__(self):
        return f"{self.case}/{self.path.name}"

    def state(self):
        """The tensors that the framework stored, by its names."""
        with np.load(
            self.path.parents[len(self.path.relative_to(DATA).parts) - 2] / "io.npz"
        ) as io:
            return {key[6:]: io[key] for key in io.files if key.startswith("state/")}


def stored_files():
    """Every file of tensors of every case."""
    found = []
    for path in sorted(DATA.glob("*/case.json")):
        case = json.loads(path.read_text(encoding="utf-8"))
        found.extend(
            Stored(
                case["case"],
                path.parent / file["path"],
                file["format"],
                file.get("names", {}),
                case,
            )
            for file in case["files"]
            if file["format"] not in _BESIDE and "shard" not in file["role"]
        )
    return found


def bits(array, dtype):
    """An array as the bytes that were stored; bfloat16 is widened by the reader."""
    if dtype == "bfloat16":
        array = (array.view(np.uint32) >> 16).astype(np.uint16)
    return array.shape, array.dtype, array.tobytes()


def find(checkpoint: Checkpoint, stored: Stored, name: str) -> str | None:
    """The name in the file of what the framework calls `name`."""
    wanted = stored.names.get(name, name)
    if wanted in checkpoint:
        return wanted
    for key, one in checkpoint.metadata.get("objects", {}).items():
        if f"{one.full_name}:0" == name:
            return key
    leaves = [
        one
        for one in checkpoint
        if one.endswith(f"/{wanted}") and not one.startswith("optimizer_weights/")
    ]
    if checkpoint.format == "keras-h5" and len(leaves) == 1:
        return leaves[0]
    dotted = name.replace("/", ".")  # how the test data flattened an nnx state
    return dotted if dotted in checkpoint else None

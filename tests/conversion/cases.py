"""Networks that real frameworks wrote, with their outputs: `tests/data/frameworks`."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnkit.core import BatchNormSpec
from tests.conversion.twin import Twin

DATA = Path(__file__).parents[1] / "data" / "frameworks"
_NO_TENSORS = (".pb", ".prototxt", "checkpoint", ".pdopt", ".data", "inference.json", "symbol.json")


class Case:
    """One folder of the test data."""

    def __init__(self, name: str):
        self.name, self.folder = name, DATA / name
        self.case = json.loads((self.folder / "case.json").read_text(encoding="utf-8"))
        self.z = np.load(self.folder / "io.npz", allow_pickle=False)

    @property
    def norms(self) -> list[dict]:
        return [op for op in self.case["graph"] if op["op"] == "batch_norm"]

    @property
    def own_error(self) -> float:
        """How far the framework's float32 output is from its own rule in float64."""
        return self.case["float64_rel_error"]["eval"]

    def twin(self) -> Twin:
        return Twin(self.case, self.z)

    def flatten(self, twin: Twin) -> dict[str, tuple[int, ...]]:
        """Spatial sizes of flattened maps, by the name of the dense layer behind each."""
        found: dict[str, tuple[int, ...]] = {}
        last: list[tuple[int, ...]] = []
        run = twin._run

        def listen(op: dict, module: Any, given: list) -> torch.Tensor:
            if op["op"] == "flatten":
                last[:] = [tuple(given[0].shape[2:])]
            elif op["op"] == "dense" and last:
                name = next(n for n, m in twin.named_children() if m is module)
                found[name] = last.pop()
            return run(op, module, given)

        twin._run = listen
        try:
            with torch.no_grad():
                twin(torch.from_numpy(self.z["x"]))
        finally:
            del twin._run
        return found

    def specs(self, twin: Twin, plan: Any) -> dict[str, BatchNormSpec]:
        """Arguments of the batch norms, which most files do not hold, by name in the source."""
        names = [
            n for n, op in zip(twin.names, self.case["graph"], strict=True) if op in self.norms
        ]
        resolved = dict(zip(names, (op["resolved"] for op in self.norms), strict=True))
        found = {}
        for t in plan.batch_norms:
            r = resolved[t.pair.target.name]
            found[re.escape(t.pair.source.name)] = replace(
                t.specs[0],
                eps=r["epsilon"],
                min_eps=r["effective_epsilon"],
                ema_weight=None if r["rule"] == "cumulative" else 1 - r["keep"],
                weight_fixed=bool(r.get("fix_gamma")),
            )
        return found


def files_of(name: str) -> list[str]:
    """The files of a case that hold tensors of the network, by their paths in its folder."""
    case = json.loads((DATA / name / "case.json").read_text(encoding="utf-8"))
    first = [case["prefix"]] if case.get("prefix") else []
    if name == "tf221_savedmodel":
        return [*first, "saved"]
    paths = [f["path"] for f in case["files"] if "shard" not in f["format"]]
    left = (*_NO_TENSORS, ".index") if first else _NO_TENSORS
    return [*first, *(p for p in paths if not p.endswith(left) and ".data-" not in p)]


def networks() -> list[tuple[str, str]]:
    """(case, file) of every network of several layers."""
    found = []
    for path in sorted(DATA.glob("*/case.json")):
        case = json.loads(path.read_text(encoding="utf-8"))
        if len(case.get("graph") or ()) > 1:
            found += [(path.parent.name, name) for name in files_of(path.parent.name)]
    return found

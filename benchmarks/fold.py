"""Architectures of transformers: what is folded, how well, and who else can follow their code.

    PYTHONPATH=. python benchmarks/fold.py result.json

Needs transformers. Models are small and have random weights (`tests/fold/architectures.py`).
"""

# ruff: noqa: TID253, T201  a script, not a module of the package

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import fx

import bnkit
from tests.fold.architectures import ARCHITECTURES
from tests.fold.networks import batch_norms, lived


def works(action: Any) -> bool:
    """Whether a call does not raise."""
    try:
        action()
    except Exception:
        return False
    return True


def exported(model: Any, inputs: Any) -> bool:
    """Whether torch.export follows the model on its example."""
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    return works(lambda: torch.export.export(model, args, kwargs, strict=False))


def measured(name: str) -> dict[str, Any]:
    """One architecture."""
    torch.manual_seed(0)
    model, inputs = ARCHITECTURES[name]()
    model = lived(model)
    start = time.perf_counter()
    folding = bnkit.fold(model, inputs, check=False)
    seconds = time.perf_counter() - start
    wide = [c.relative_error for c in folding.proof.checks if c.dtype == "float64" and not c.note]
    return {
        "name": name,
        "batch_norms": len(folding.records),
        "folded": len(folding.folded),
        "left": len(folding.kept),
        "refused": len(folding.refused),
        "unfolded_layers": len(batch_norms(folding.model)),
        "holds": folding.proof.holds,
        "relative_error": folding.proof.relative_error,
        "relative_error_varied": folding.proof.relative_error_varied,
        "own_rounding": max(c.noise for c in folding.proof.checks if c.inputs == "given"),
        "relative_error64": max(wide) if wide else None,
        "seconds": round(seconds, 2),
        "torch_fx": works(lambda: fx.symbolic_trace(model)),
        "torch_export": exported(model, inputs),
    }


def main(path: Path) -> None:
    """Measure all, and write the file."""
    warnings.simplefilter("ignore")
    rows = []
    for name in ARCHITECTURES:
        rows.append(measured(name))
        print(rows[-1], flush=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    document = {"schema": "bnkit.fold.architectures/1", "versions": versions, "rows": rows}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

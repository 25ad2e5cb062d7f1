"""A trained twin leaves training: folded with a proof, timed, exported to ONNX and run there."""

import base64
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.core.files import write_whole
from bnkit.fold import Folding, fold
from bnkit.fold.proof import Proof
from bnkit.lab.data import digits
from bnkit.lab.exporting import Exported, export, versions
from bnkit.lab.leaving_record import FoldCheck, FoldedLayer, Latency, Leaving
from bnkit.lab.plain import rebuild
from bnkit.lab.progress import Progress, silent
from bnkit.lab.store import Parts
from bnkit.lab.text import Text
from bnkit.lab.threads import one_thread
from bnkit.lab.twins import TwinConfig, accuracy, train
from bnkit.nn import restore_

PROTOCOL = 1  # raise it when a change here changes the numbers: kept parts are then not reused
EXAMPLE = 64  # images to prove the folding with
BATCHES = (1, 64)  # images at once, to time
STEPS = 4

# Original, folded copy, one batch; the fields of `Latency` but `images`.
Stopwatch = Callable[[nn.Module, nn.Module, Tensor], dict[str, Any]]

_INPUTS = {
    "given": Text("training images", "训练图像"),
    "times 100": Text("times 100", "乘以 100"),
    "divided by 100": Text("divided by 100", "除以 100"),
    "zeros": Text("zeros", "全零"),
    "border 100 times": Text("border times 100", "边缘乘以 100"),
    "constant channels": Text("constant channels", "每个通道为常数"),
}


def run_leaving(
    config: TwinConfig,
    lr: float,
    *,
    stopwatch: Stopwatch | None = None,
    folder: Path | None = None,
    parts: Parts | None = None,
    progress: Progress = silent,
) -> Leaving:
    """Train one twin with batch norm, fold it, prove it, time it, export it.

    Torch's own layers take the place of those of bnkit first: nothing of bnkit is needed where
    the network goes, and the times compare what everybody has.

    Args:
        config: How the twins are trained; the first of its seeds is taken.
        lr: Learning rate.
        stopwatch: Times the original and the folded network, as `bnkit.bench.fold.race`; None
            measures no times.
        folder: Where the ONNX files go; None writes none.
        parts: Where the finished result is kept; None keeps nothing.
        progress: Told how far the work is, in the stage "leaving".

    Returns:
        Proof, times and what became of the ONNX files.
    """
    key = {
        "twins": config.to_dict(),
        "lr": lr,
        "seed": config.seeds[0],
        "timed": stopwatch is not None,
        "protocol": PROTOCOL,
        "torch": torch.__version__,
        **versions(),
    }

    def compute() -> dict[str, Any]:
        found, exported = _leave(config, lr, stopwatch, progress)
        return {"found": found.to_dict(), "files": _as_text(exported)}

    kept = (Parts() if parts is None else parts).get("leaving", key, compute)
    if folder is not None:
        for name, text in kept["files"].items():
            _write(folder / name, base64.b64decode(text))
    progress("leaving", STEPS, STEPS)
    return rebuild(Leaving, kept["found"])


def _leave(
    config: TwinConfig, lr: float, stopwatch: Stopwatch | None, progress: Progress
) -> tuple[Leaving, Exported]:
    split, seed = digits(config.split_seed), config.seeds[0]
    images = split.test.images
    progress("leaving", 0, STEPS, "train")
    model = train(config, split, "bn", seed=seed, lr=lr, listen=False).model
    restore_(model)
    with one_thread():
        progress("leaving", 1, STEPS, "fold")
        folding = fold(model, split.train.images[:EXAMPLE], check=False)
        progress("leaving", 2, STEPS, "time")
        latencies = _latencies(model, folding.model, images, stopwatch)
        progress("leaving", 3, STEPS, "ONNX")
        exported = export(model, folding.model, images)
        found = Leaving(
            **_proof(folding.proof),
            config={"seed": seed, "lr": lr, "example": EXAMPLE, "test": len(images)},
            layers=_layers(folding),
            accuracy=accuracy(model, split.test),
            accuracy_after=accuracy(folding.model, split.test),
            same=_same(model, folding.model, images),
            latencies=latencies,
            export=exported.record,
        )
    return found, exported


def _proof(proof: Proof) -> dict[str, Any]:
    checks = tuple(
        FoldCheck(
            id=c.inputs,
            inputs=_INPUTS.get(c.inputs, Text(c.inputs, c.inputs)),
            dtype=c.dtype,
            relative_error=None if c.note else _finite(c.relative_error),
            noise=None if c.note else _finite(c.noise),
            passes=c not in proof.failed,
            note=c.note or c.error,
        )
        for c in proof.checks
    )
    errors = ("max_error", "relative_error", "relative_error_varied", "relative_error64")
    return {
        "holds": proof.holds,
        "dtype": proof.dtype,
        "tolerance": proof.tolerance,
        "tolerance64": proof.tolerance64,
        "checks": checks,
        **{name: _finite(getattr(proof, name)) for name in errors},
    }


def _layers(folding: Folding) -> tuple[FoldedLayer, ...]:
    return tuple(FoldedLayer(r.name, r.action, r.into, r.reason) for r in folding.records)


def _latencies(
    model: nn.Module, folded: nn.Module, images: Tensor, stopwatch: Stopwatch | None
) -> tuple[Latency, ...]:
    if stopwatch is None:
        return ()
    return tuple(Latency(images=n, **stopwatch(model, folded, images[:n])) for n in BATCHES)


def _same(model: nn.Module, folded: nn.Module, images: Tensor) -> int:
    with torch.no_grad():
        return int((model(images).argmax(1) == folded(images).argmax(1)).sum())


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _as_text(exported: Exported) -> dict[str, str]:
    """Files for a kept part, which is JSON."""
    return {n: base64.b64encode(data).decode("ascii") for n, data in exported.data.items()}


def _write(path: Path, data: bytes) -> None:
    advice = "Choose another folder with --out."
    write_whole(path, lambda t: t.write_bytes(data), expected="to write a network", advice=advice)

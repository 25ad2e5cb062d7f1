"""The frozen results of the network that leaves training."""

from dataclasses import dataclass
from typing import Any, Literal

from bnkit.lab.plain import Record
from bnkit.lab.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldCheck(Record):
    """The folded network beside the original on one kind of input.

    Attributes:
        id: Of the kind.
        inputs: The kind.
        dtype: Of the computation.
        relative_error: Largest difference of an output, divided by the largest output; None where
            nothing was compared, or where it is not finite.
        noise: What rounding does to the original itself on these inputs.
        passes: Whether the proof allows the error.
        note: Why nothing was compared.
    """

    id: str
    inputs: Text
    dtype: str
    relative_error: float | None
    noise: float | None
    passes: bool
    note: str


@dataclass(frozen=True, slots=True)
class FoldedLayer(Record):
    """What became of one batch norm."""

    name: str
    action: Literal["folded", "scale_shift", "kept", "refused"]
    into: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Record):
    """Inference of original and folded network in turn.

    Attributes:
        images: In one batch.
        before: Median seconds of the original.
        after: The same of the folded network.
        ratio: Median over the rounds of folded over original.
        low: First quartile of the ratios.
        high: Third quartile.
        rounds: Number of rounds.
        others: Share of the processor that other processes took meanwhile, if known.
    """

    images: int
    before: float
    after: float
    ratio: float
    low: float
    high: float
    rounds: int
    others: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile(Record):
    """One exported network.

    Attributes:
        id: Of the network.
        name: Where it comes from.
        file: Its file name; None where it could not be made.
        size: Bytes.
        nodes: Operators of the graph.
        norms: How many of them are BatchNormalization.
        relative_error: Distance of its outputs on the test images from those of the original in
            PyTorch; None where it did not run.
        same: Test images with the same answer as the original's.
        problem: What went wrong: it could not be folded, checked or run.
    """

    id: Literal["unfolded", "folded", "folded-file"]
    name: Text
    file: str | None
    size: int
    nodes: int
    norms: int
    relative_error: float | None
    same: int | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Export(Record):
    """The networks as ONNX files.

    Attributes:
        files: The files; none where the export could not be done.
        engine: What ran them, and its version.
        without: Why something was left out: the export, or ONNX Runtime.
    """

    files: tuple[OnnxFile, ...]
    engine: str | None
    without: Text | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving(Record):
    """A trained network that leaves training: folded with a proof, timed, exported.

    Attributes:
        config: What was done.
        holds: Whether the proof holds.
        dtype: Of the network.
        tolerance: Relative error that is allowed in it.
        tolerance64: The same in float64.
        max_error: Largest absolute error on the given images.
        relative_error: Largest relative error on the given images.
        relative_error_varied: The same on variations of them.
        relative_error64: The same in float64, on all.
        checks: All comparisons.
        layers: What became of each batch norm.
        accuracy: Share of the test images that the original gets right.
        accuracy_after: The same of the folded network.
        same: Test images with the same answer from both.
        latencies: Times; none where nothing measured them.
        export: The ONNX files.
    """

    config: dict[str, Any]
    holds: bool
    dtype: str
    tolerance: float
    tolerance64: float
    max_error: float | None
    relative_error: float | None
    relative_error_varied: float | None
    relative_error64: float | None
    checks: tuple[FoldCheck, ...]
    layers: tuple[FoldedLayer, ...]
    accuracy: float
    accuracy_after: float
    same: int
    latencies: tuple[Latency, ...]
    export: Export

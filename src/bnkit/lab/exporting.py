"""The same network as ONNX files: original, folded, and the original's file folded."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bnkit.core.errors import BatchNormError
from bnkit.fold.onnx import fold_onnx
from bnkit.lab.leaving_record import Export, OnnxFile
from bnkit.lab.text import Text

Kind = Literal["unfolded", "folded", "folded-file"]

OPSET = 18
_INSTALL = 'pip install "bnkit[onnx]"'
_NAMES: dict[Kind, tuple[str, Text]] = {
    "unfolded": ("twin.onnx", Text("the original, exported", "原网络直接导出")),
    "folded": ("twin-folded.onnx", Text("folded, then exported", "先折叠，再导出")),
    "folded-file": (
        "twin-file-folded.onnx",
        Text("exported, then its file folded", "先导出，再折叠文件"),
    ),
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported.

    Attributes:
        record: What is told about it.
        data: The files by name.
    """

    record: Export
    data: dict[str, bytes]


def versions() -> dict[str, str | None]:
    """The packages that the export depends on, None where one is missing."""
    return {name: _version(name) for name in ("onnx", "onnxruntime")}


def export(model: nn.Module, folded: nn.Module, images: Tensor) -> Exported:
    """Export a network and its folded copy, fold the file too, check all three and run them.

    Args:
        model: The original, in eval mode, with torch's own layers.
        folded: Its folded copy.
        images: What to run them on, shape (n, channels, height, width).

    Returns:
        The files and what is told about them. A missing package, or an exporter that fails, is
        no error but a reason.
    """
    if find_spec("onnx") is None:
        words = ("the package onnx is not installed", "没有安装 onnx 包")
        return _nothing(Text(f"{words[0]}: {_INSTALL}", f"{words[1]}：{_INSTALL}"))
    try:
        data: dict[Kind, bytes] = {
            "unfolded": _onnx(model, images),
            "folded": _onnx(folded, images),
        }
    except Exception as error:  # an optional step: what the exporter of torch raises is told
        return _nothing(_failed("torch.onnx.export", error))
    problems: dict[Kind, str] = {}
    try:
        data["folded-file"] = fold_onnx(data["unfolded"]).model.SerializeToString()
    except BatchNormError as error:
        problems["folded-file"] = str(error)
    engine, start, without = _engine()
    with torch.no_grad():
        expected = model(images).numpy()
    given = images.numpy()
    files = tuple(
        _tried(kind, data[kind], lambda d: start(d)({"images": given})[0], expected)
        if kind in data
        else _absent(kind, problems[kind])
        for kind in _NAMES
    )
    named = {_NAMES[kind][0]: content for kind, content in data.items()}
    return Exported(Export(files=files, engine=engine, without=without), named)


def _onnx(model: nn.Module, images: Tensor) -> bytes:
    """By torch's older exporter, which needs no further package and keeps batch norms if asked."""
    buffer: Any = io.BytesIO()  # torch's annotation knows names of files only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says about itself that there is a newer one
        torch.onnx.export(
            model,
            (images[:2],),
            buffer,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["scores"],
            dynamic_axes={"images": {0: "n"}, "scores": {0: "n"}},
        )
    return buffer.getvalue()


def _engine() -> tuple[str, Callable[[bytes], Any], Text | None]:
    from bnkit.fold.onnx.engines import ENGINES

    try:
        return *ENGINES["onnxruntime"](), None
    except ModuleNotFoundError:
        without = Text(
            f"ONNX Runtime is not installed: {_INSTALL}", f"没有安装 ONNX Runtime：{_INSTALL}"
        )
    except Exception as error:  # an installation that is broken on this machine
        without = _failed("ONNX Runtime", error)
    return *ENGINES["reference"](), without


def _tried(
    kind: Kind, data: bytes, run: Callable[[bytes], np.ndarray], expected: np.ndarray
) -> OnnxFile:
    """Check a file and run it."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    error, same, problem = None, None, None
    try:
        onnx.checker.check_model(model, full_check=True)
        got = run(data)
    except Exception as found:  # the checker and the engines have classes of their own
        problem = _reason(found)
    else:
        error = _distance(got, expected)
        same = int((got.argmax(1) == expected.argmax(1)).sum())
    return OnnxFile(
        id=kind,
        name=_NAMES[kind][1],
        file=_NAMES[kind][0],
        size=len(data),
        nodes=len(model.graph.node),
        norms=sum(n.op_type == "BatchNormalization" for n in model.graph.node),
        relative_error=error,
        same=same,
        problem=problem,
    )


def _distance(got: np.ndarray, expected: np.ndarray) -> float | None:
    """Largest difference over largest output; None where one is not finite."""
    with np.errstate(all="ignore"):
        difference = np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max()
    return float(difference) if np.isfinite(difference) else None


def _absent(kind: Kind, problem: str) -> OnnxFile:
    return OnnxFile(
        id=kind,
        name=_NAMES[kind][1],
        file=None,
        size=0,
        nodes=0,
        norms=0,
        relative_error=None,
        same=None,
        problem=problem,
    )


def _nothing(why: Text) -> Exported:
    return Exported(Export(files=(), engine=None, without=why), {})


def _failed(what: str, error: Exception) -> Text:
    reason = _reason(error)
    return Text(f"{what} failed: {reason}", f"{what} 失败：{reason}")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"


def _version(name: str) -> str | None:
    if find_spec(name) is None:
        return None
    try:
        return version(name)
    except PackageNotFoundError:  # another build of it, such as onnxruntime-gpu
        return "unknown"

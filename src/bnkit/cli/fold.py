"""`bnkit fold`: batch norms into their neighbours, with a proof."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zipfile import BadZipFile

from cyclopts import Parameter
from cyclopts.validators import Number

from bnkit.cli.console import error
from bnkit.cli.console import out as console

if TYPE_CHECKING:
    from torch import nn

    from bnkit.fold.onnx import OnnxFolding

Switch = Parameter(negative="")
FOLDED, NOT_EQUAL = 0, 1


def fold(
    subject: str,
    *,
    data: str | None = None,
    weights: Path | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    check: Annotated[bool, Switch] = False,
    tolerance: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    leftover: Literal["scale_shift", "keep"] = "scale_shift",
    batch_size: Annotated[int, Parameter(validator=Number(gte=1))] = 8,
    json: Path | None = None,
    quiet: Annotated[bool, Switch] = False,
) -> int:
    """Fold the batch norms of a model into its convolutions and linear layers.

    Prints what was folded, what was not and why, and how far the folded model is from the
    original on the data and on difficult variations of it. Nothing is written where that is above
    tolerance. An ONNX file is folded into another ONNX file.

    Args:
        subject: path.py:name or package.module:name of the model or of a function that builds
            it; or a file.onnx.
        data: Example inputs: a file.npz, a folder of images, or path.py:loader. For an ONNX file
            an .npz with an array for each input; without it they are made up.
        weights: A checkpoint to load into the model first.
        out: New file: .safetensors for the state_dict, .pt2 for a program of torch.export, .onnx
            for ONNX.
        check: Only fold and compare; write no model.
        tolerance: Relative error that is allowed; by default 2e-6 in float32.
        leftover: What becomes of batch norms without a neighbour: scale_shift or keep.
        batch_size: Samples of the example.
        json: Write what was found to this file.
        quiet: Print nothing but errors.

    Returns:
        The exit status: 0 equal within tolerance, 1 not, or it could not be folded.
    """
    out = None if check else out
    _check_out(subject, out)
    if subject.endswith(".onnx"):
        folding = _fold_onnx(subject, data, weights, tolerance)
        _report(folding, json, quiet=quiet)
        if out is not None:
            folding.save(out)
            _say(f"wrote {out}", quiet=quiet)
        return FOLDED
    from bnkit.fold import fold as fold_model

    model = _model(subject, weights)
    example = _example(model, data, batch_size)
    folding = fold_model(model, example, check=False, tolerance=tolerance, leftover=leftover)
    _report(folding, json, quiet=quiet)
    if not folding.proof.holds:
        error("the folded model is not equal within tolerance. Nothing was written.")
        return NOT_EQUAL
    if out is not None:
        _save(folding.model, example, out)
        _say(f"wrote {out}", quiet=quiet)
    return FOLDED


def _report(folding: Any, json: Path | None, *, quiet: bool) -> None:
    if json is not None:
        from bnkit.lab.store import write_json

        write_json(folding.to_dict(), json, indent=1)
    _say(str(folding), quiet=quiet)


def _say(text: str, *, quiet: bool) -> None:
    if not quiet:
        console().print(text)


def _check_out(subject: str, out: Path | None) -> None:
    from bnkit.core.errors import OutputError

    if out is None:
        return
    kinds = {".onnx"} if subject.endswith(".onnx") else {".safetensors", ".pt2"}
    if out.suffix not in kinds or out.exists() or not out.parent.is_dir():
        msg = (
            f"{str(out)!r}: expected a new file that ends in {' or '.join(sorted(kinds))}, in a "
            "folder that exists. Choose another --out."
        )
        raise OutputError(msg)


def _model(subject: str, weights: Path | None) -> "nn.Module":
    from bnkit.sources.callables import load_model

    model = load_model(subject)
    if weights is not None:
        from bnkit.sources.checkpoint import read_checkpoint

        read_checkpoint(weights).load_into(model, whole=True)
    return model.eval()


def _example(model: "nn.Module", data: str | None, batch_size: int) -> Any:
    """The first batch: a tensor, or keyword arguments."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset

    from bnkit.core.errors import InputError
    from bnkit.fold.proof import working_dtype
    from bnkit.sources.data import DataOptions, open_data

    if data is None:
        msg = "fold: expected example inputs to prove the folding with. Pass --data."
        raise InputError(msg)
    found = open_data(data, DataOptions(batch_size=batch_size))
    if isinstance(found, np.ndarray):
        return torch.from_numpy(found[:batch_size]).to(working_dtype(model))
    if isinstance(found, torch.Tensor):
        return found[:batch_size]
    if isinstance(found, Dataset):
        found = DataLoader(found, batch_size)
    batch = next(iter(found), None)
    batch = batch[0] if isinstance(batch, list | tuple) and batch else batch  # labels come second
    if not isinstance(batch, torch.Tensor | dict):
        msg = f"{data!r}: expected a batch that is a tensor or has one first, got {type(batch)}."
        raise InputError(msg)
    return batch


def _fold_onnx(
    subject: str, data: str | None, weights: Path | None, tolerance: float | None
) -> "OnnxFolding":
    import numpy as np

    from bnkit.core.errors import InputError
    from bnkit.fold.onnx import fold_onnx

    if weights is not None:
        msg = f"{subject}: expected no --weights beside an ONNX file, which holds its own."
        raise InputError(msg)
    if data is None:
        return fold_onnx(subject, tolerance=tolerance)
    try:
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, EOFError, BadZipFile) as problem:
        msg = f"{data!r}: expected an .npz file with an array for each input of {subject}."
        raise InputError(msg) from problem
    return fold_onnx(subject, inputs=arrays, tolerance=tolerance)


def _save(model: "nn.Module", example: Any, out: Path) -> None:
    """The file is complete or is not there."""
    if out.suffix == ".safetensors":
        from bnkit.sources.checkpoint import write_tensors

        write_tensors(out, model.state_dict())
        return
    import torch

    from bnkit.core.errors import FoldError
    from bnkit.core.files import write_whole

    args, kwargs = ((), example) if isinstance(example, dict) else ((example,), {})
    try:
        program = torch.export.export(model, args, kwargs)
    except Exception as problem:
        first = str(problem).partition("\n")[0]
        msg = (
            f"{str(out)!r}: expected a model that torch.export follows, got "
            f"{type(problem).__name__}: {first}. Write its state_dict: --out NAME.safetensors."
        )
        raise FoldError(msg) from problem

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # torch warns of names without the ending .pt2
            torch.export.save(program, file)

    write_whole(out, write, expected="to write the program there", advice="Choose another --out.")

"""`bnkit fix`: mend a network into a new file, and only when that helps."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from bnkit.cli.console import error
from bnkit.cli.console import out as console
from bnkit.cli.doctor import CLEAN, COULD_NOT_RUN, FOUND, Count, Purpose

if TYPE_CHECKING:
    from torch import nn

    from bnkit.doctor.mending import Mending, Recalibrate

Switch = Parameter(negative="")
_NO_NUMBER = (
    "no number changed: a checkpoint does not hold the mode of a network. Call model.eval() before "
    "inference. Nothing was written."
)


def fix(
    subject: str,
    *,
    output: Path,
    data: str | None = None,
    recalibrate: str | None = None,
    purpose: Purpose = "infer",
    weights: Path | None = None,
    batches: Count = 20,
    batch_size: Count = 64,
    dry_run: Annotated[bool, Switch] = False,
) -> int:
    """Mend what the doctor found and write the state_dict into a new file.

    Safe mends by default; with --recalibrate also the running statistics, as `bnkit recalibrate`
    estimates them. The mended network is examined again, and nothing is written when no
    number changed or the measured metric does not improve.

    Args:
        subject: path.py:function that builds the model.
        output: New file, .safetensors or .pt; an existing one is never overwritten.
        data: Batches to measure with: FILE.npz with x and y, or path.py:loader; by default those of
            --recalibrate.
        recalibrate: Batches of the training set to gather the running statistics from.
        purpose: What the network is meant for: infer, train, finetune or export.
        weights: A checkpoint to load into the model.
        batches: Batches to look at.
        batch_size: Rows of a batch when the data are arrays.
        dry_run: Say what would be done, and write nothing.

    Returns:
        The exit status: 0 mended, 1 not mended, 2 could not run.

    Raises:
        KeyboardInterrupt: The user stopped it; nothing was written.
    """
    from bnkit.core.errors import BatchNormError

    taking: dict[str, Any] = {"batches": batches, "batch_size": batch_size}
    try:
        _check_output(output)
        from bnkit.doctor.mending import mend

        network = _model(subject, weights, purpose)
        statistics = _batches_of(recalibrate, batches)
        mended = mend(
            network,
            statistics if data is None else _batches_of(data, batches),
            purpose,
            recalibrate=None if statistics is None else _recalibrator(statistics, taking),
            **taking,
        )
        _report(mended)
        if mended.refused is not None:
            error(f"{mended.refused}. Nothing was written.", title="not mended")
            return FOUND
        if _same_numbers(network, mended.model):
            error(_NO_NUMBER, title="not mended")
            return FOUND
        if not dry_run:
            _save(mended, output)
    except BatchNormError as problem:
        error(str(problem))
        return COULD_NOT_RUN
    except KeyboardInterrupt:
        msg = f"Stopped. {output} was not written."
        raise KeyboardInterrupt(msg) from None
    return CLEAN


def _check_output(output: Path) -> None:
    from bnkit.core.errors import InputError
    from bnkit.core.files import check_writable

    if output.suffix not in {".safetensors", ".pt", ".pth"} or output.exists():
        msg = f"{output}: expected a new .safetensors or .pt file. Choose another --output."
        raise InputError(msg)
    check_writable(output, advice="Choose another --output.")


def _model(subject: str, weights: Path | None, purpose: str) -> "nn.Module":
    from torch import nn

    from bnkit.cli.subject import load_subject
    from bnkit.core.errors import InputError

    loaded = load_subject(subject, weights, purpose)
    if not isinstance(loaded, nn.Module):
        msg = (
            f"{subject}: expected path.py:function of a model, to examine it again, got a file. "
            "For a checkpoint: bnkit fix path.py:function --weights CHECKPOINT, or bnkit "
            "recalibrate CHECKPOINT."
        )
        raise InputError(msg)
    return loaded


def _batches_of(text: str | None, batches: int) -> Any:
    from bnkit.sources.batches import Batches
    from bnkit.sources.data import open_labelled

    found = None if text is None else open_labelled(text)
    # it is read more than once
    return list(Batches(found, most=batches)) if isinstance(found, Iterator) else found


def _recalibrator(data: Any, taking: dict[str, int]) -> "Recalibrate":
    from bnkit.recalibration import recalibrate_
    from bnkit.sources.data import mixed

    return lambda model: recalibrate_(model, mixed(data), **taking)


def _same_numbers(one: "nn.Module", other: "nn.Module") -> bool:
    import torch

    theirs = other.state_dict()
    pairs = [(t, theirs[n]) for n, t in one.state_dict().items() if isinstance(t, torch.Tensor)]
    return all(a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b)) for a, b in pairs)


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)  # NaN is equal to itself


def _report(mended: "Mending") -> None:
    from bnkit.cli.doctor_text import impact_words

    console().print(f"before: {mended.before.verdict}")
    for step in mended.steps:
        console().print(f"  {step}")
    console().print(f"after:  {mended.after.verdict}")
    for finding in mended.after.findings:
        advice = "" if finding.fix is None else f": {finding.fix.text}"
        console().print(f"  {finding.code} {finding.name} is left{advice}")
    for word, diagnosis in (("before", mended.before), ("after", mended.after)):
        if diagnosis.impact is not None:
            console().print(f"{word}: {impact_words(diagnosis.impact)}")


def _save(mended: "Mending", output: Path) -> None:
    from bnkit.sources.checkpoint import write_tensors

    write_tensors(output, mended.model.state_dict())
    console().print(f"wrote {output}")

"""`bnkit fix`: mend a network into a new file, and only when that helps."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bnkit.cli.console import error
from bnkit.cli.console import out as console
from bnkit.cli.doctor import CLEAN, COULD_NOT_RUN, FOUND, Count, Purpose

if TYPE_CHECKING:
    from torch import nn

    from bnkit.doctor.mending import Mending

Switch = Parameter(negative="")


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

    Safe mends by default; with --recalibrate also the running statistics. The mended network is
    examined again, and nothing is written when no measured metric improves.

    Args:
        subject: path.py:function that builds the model.
        output: New file, .safetensors or .pt; an existing one is never overwritten.
        data: Batches to measure with: FILE.npz with x and y, or path.py:loader.
        recalibrate: Batches of the training set to gather the running statistics from.
        purpose: What the network is meant for: infer, train, finetune or export.
        weights: A checkpoint to load into the model.
        batches: Batches to look at.
        batch_size: Rows of a batch when the data are arrays.
        dry_run: Say what would be done, and write nothing.

    Returns:
        The exit status: 0 mended, 1 not mended, 2 could not run.
    """
    from bnkit.cli.subject import load_data, load_subject
    from bnkit.core.errors import BatchNormError

    try:
        _check_output(output)
        from bnkit.doctor.mending import mend

        mended = mend(
            _model(load_subject(subject, weights), subject),
            load_data(recalibrate or data),
            purpose,
            unsafe=recalibrate is not None,
            batches=batches,
            batch_size=batch_size,
        )
        _report(mended)
        if mended.refused is not None:
            error(f"{mended.refused}. Nothing was written.", title="not mended")
            return FOUND
        if not dry_run:
            _save(mended, output)
    except BatchNormError as problem:
        error(str(problem))
        return COULD_NOT_RUN
    return CLEAN


def _check_output(output: Path) -> None:
    from bnkit.core.errors import InputError

    if output.suffix not in {".safetensors", ".pt", ".pth"} or output.exists():
        msg = f"{output}: expected a new .safetensors or .pt file. Choose another --output."
        raise InputError(msg)


def _model(loaded: object, subject: str) -> "nn.Module":
    from torch import nn

    from bnkit.core.errors import InputError

    if not isinstance(loaded, nn.Module):
        msg = f"{subject}: expected path.py:function of a model, to examine it again."
        raise InputError(msg)
    return loaded


def _report(mended: "Mending") -> None:
    from bnkit.cli.doctor_text import impact_words

    console().print(f"before: {mended.before.verdict}")
    for step in mended.steps:
        console().print(f"  {step}")
    console().print(f"after:  {mended.after.verdict}")
    for word, diagnosis in (("before", mended.before), ("after", mended.after)):
        if diagnosis.impact is not None:
            console().print(f"{word}: {impact_words(diagnosis.impact)}")


def _save(mended: "Mending", output: Path) -> None:
    """Write beside the target, then rename: the file is complete or is not there."""
    from bnkit.core.errors import OutputError

    state = {k: v.contiguous() for k, v in mended.model.state_dict().items()}
    temporary = output.with_name(f".{output.stem}.{os.getpid()}{output.suffix}")
    try:
        if output.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({k: v.clone() for k, v in state.items()}, temporary)
        else:
            import torch

            torch.save(state, temporary)
        temporary.replace(output)
    except OSError as problem:
        msg = f"{output}: cannot be written ({problem}). Choose another --output."
        raise OutputError(msg) from problem
    finally:
        temporary.unlink(missing_ok=True)
    console().print(f"wrote {output}")

"""`bnkit doctor`: examine a subject, say what is wrong, and end with a status."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from bnkit.cli.console import error
from bnkit.cli.console import out as console

if TYPE_CHECKING:
    from bnkit.doctor.diagnosis import Diagnosis
    from bnkit.doctor.selection import Selection

Purpose = Literal["infer", "train", "finetune", "export"]
Relation = Literal["averaged", "rank", "converted"]
Level = Literal["error", "warning", "info"]
Format = Literal["text", "json", "sarif", "junit", "html"]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
CLEAN, FOUND, COULD_NOT_RUN = 0, 1, 2
BASELINE = "bnkit.doctor.baseline/1"


def doctor(
    subject: str,
    *,
    data: str | None = None,
    purpose: Purpose = "infer",
    weights: Path | None = None,
    pair: str | None = None,
    relation: Relation = "averaged",
    member: tuple[str, ...] = (),
    format: Format = "text",
    output: Path | None = None,
    batches: Count = 16,
    batch_size: Count = 64,
    select: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    level: Level | None = None,
    fail_on: Literal["error", "warning", "info", "never"] = "error",
    baseline: Path | None = None,
    write_baseline: Path | None = None,
    config: Path | None = None,
) -> int:
    """Find what is wrong with the batch norms of a network, and what it costs.

    Ends with 0 when nothing as bad as --fail-on was found, 1 when something was, 2 when it could
    not run.

    Args:
        subject: path.py:function that builds the model, a checkpoint (.safetensors, .pt), a
            program (.pt2) or an .onnx file.
        data: Batches of training data: FILE.npz with x and y, or path.py:loader.
        purpose: What the network is meant for: infer, train, finetune or export.
        weights: A checkpoint to load into the model, which is then looked at in eval mode unless
            it is meant for training.
        pair: A second subject to compare with.
        relation: What the second one is: averaged, rank or converted.
        member: A network whose parameters were averaged into this one; give it for each of them.
        format: text, json, sarif, junit or html.
        output: File to write instead of the terminal.
        batches: Batches to look at.
        batch_size: Rows of a batch when the data are arrays.
        select: Codes, or prefixes of codes, to run alone.
        ignore: Codes, or prefixes, to leave out.
        level: Report findings from this level on: error, warning or info.
        fail_on: Findings from this level on end with status 1.
        baseline: File of known findings, which are not reported.
        write_baseline: Write what is found as a baseline.
        config: A pyproject.toml with [tool.bnkit.doctor]; by default that of this folder.

    Returns:
        The exit status.
    """
    from bnkit.cli.subject import load_subject
    from bnkit.core.errors import BatchNormError
    from bnkit.core.files import check_writable

    try:
        selection = _selection(config, select, ignore, level, baseline)
        for path in filter(None, (output, write_baseline)):
            check_writable(path)
        from bnkit.doctor.diagnosing import diagnose
        from bnkit.sources.data import open_labelled

        diagnosis = diagnose(
            load_subject(subject, weights, purpose),
            None if data is None else open_labelled(data),
            purpose,
            pair=None if pair is None else load_subject(pair),
            relation=relation,
            members=[load_subject(one) for one in member] or None,
            batches=batches,
            batch_size=batch_size,
            selection=selection,
            name=subject,
        )
        _write(_rendered(diagnosis, format, subject), output)
        if write_baseline is not None:
            _write(_baseline(diagnosis), write_baseline)
    except BatchNormError as problem:
        error(str(problem))
        return COULD_NOT_RUN
    return _status(diagnosis, fail_on)


def _status(diagnosis: "Diagnosis", fail_on: str) -> int:
    from bnkit.doctor.selection import read_level

    worst = diagnosis.worst()
    if fail_on == "never" or worst is None or worst < read_level(fail_on):
        return CLEAN
    return FOUND


def _rendered(diagnosis: "Diagnosis", format: Format, subject: str) -> str:
    if format == "text":
        from bnkit.cli.doctor_text import render

        return render(diagnosis)
    if format == "json":
        return json.dumps(diagnosis.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if format == "html":
        from bnkit.report.doctor_page import render_diagnosis

        return render_diagnosis(diagnosis)
    from bnkit.report.formats import junit, sarif

    if format == "junit":
        return junit(diagnosis)
    return json.dumps(sarif(diagnosis, subject), indent=2, allow_nan=False) + "\n"


def _write(text: str, path: Path | None) -> None:
    from bnkit.core.files import write_text

    if path is None:
        console().print(text, end="")
    else:
        write_text(path, text, advice="Choose another name.")


def _selection(
    config: Path | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    level: str | None,
    baseline: Path | None,
) -> "Selection":
    from bnkit.doctor.selection import read_level, read_selection

    chosen = read_selection(_table(config))
    if select:
        chosen = replace(chosen, select=_codes(select))
    if ignore:
        chosen = replace(chosen, ignore=chosen.ignore + _codes(ignore))
    if level is not None:
        chosen = replace(chosen, level=read_level(level))
    if baseline is not None:
        chosen = replace(chosen, baseline=_read_baseline(baseline))
    return chosen


def _codes(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(c.strip().upper() for word in words for c in word.split(",") if c.strip())


def _table(config: Path | None) -> dict[str, Any]:
    from bnkit.core.errors import SpecError

    path = config or Path("pyproject.toml")
    if config is None and not path.is_file():
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        msg = f"{path}: expected a TOML file, got: {reason}."
        raise SpecError(msg) from problem
    return content.get("tool", {}).get("bnkit", {}).get("doctor", {})


def _baseline(diagnosis: "Diagnosis") -> str:
    known = {f.fingerprint: f"{f.code} {f.name}" for f in diagnosis.findings}
    return json.dumps({"schema": BASELINE, "findings": known}, indent=2) + "\n"


def _read_baseline(path: Path) -> frozenset[str]:
    from bnkit.core.errors import InputError

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] == BASELINE:
            return frozenset(content["findings"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        msg = f"{path}: expected a baseline of `bnkit doctor --write-baseline`, got: {reason}."
        raise InputError(msg) from problem
    msg = f"{path}: expected schema {BASELINE}, got {content['schema']!r}."
    raise InputError(msg)

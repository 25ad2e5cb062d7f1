"""`bnkit lab faults`: the table of the doctor's fault suite, measured here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from bnkit.cli.console import err
from bnkit.cli.console import out as console

if TYPE_CHECKING:
    from bnkit.doctor.diagnosis import Diagnosis


def faults(
    *,
    healthy: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
) -> int:
    """Plant every measured fault in a trained network and let the doctor name it.

    Takes about half a minute; with --healthy about two.

    Args:
        healthy: Also 32 trainings without a fault.
        out: File for the table, in Markdown.

    Returns:
        0 when every cause was named first and no healthy training gave an error, else 1.
    """
    from bnkit.lab.faults import FAULTS, healthy_trainings
    from bnkit.lab.threads import one_thread

    suite = {**FAULTS, **(healthy_trainings() if healthy else {})}
    lines = [
        "| Fault | accuracy: eval / batch | layers | first finding | after recalibration |",
        "|---|---|---|---|---|",
    ]
    missed = 0
    with one_thread():
        for name, build in suite.items():
            err().print(name)
            row, right = _row(name, build())
            lines.append(row)
            missed += not right
    text = "\n".join(lines) + "\n"
    if out is None:
        console().print(text, end="")
    else:
        from bnkit.core.files import write_text

        write_text(out, text)
    return 1 if missed else 0


def _row(name: str, patient: Any) -> tuple[str, bool]:
    from copy import deepcopy

    import bnkit

    found = bnkit.diagnose(patient.model, patient.data, patient.purpose, **patient.options)
    again = deepcopy(patient.model)
    bnkit.recalibrate_(again, patient.data, batches=20)
    after = bnkit.diagnose(again, patient.data, patient.purpose).impact
    first = found.findings[0] if found.findings else None
    cause = "" if first is None or first.found.cause is None else f" ({first.found.cause})"
    said = "none" if first is None else f"{first.code} {first.severity.label}{cause}"
    accuracy = (
        "" if found.impact is None else f"{found.impact.before:.3f} / {found.impact.after:.3f}"
    )
    mended = "" if after is None else f"{after.before:.3f}"
    row = f"| {name} | {accuracy} | {_verdicts(found)} | {said} | {mended} |"
    if patient.expected is None:
        return row, not found.errors
    right = first is not None and first.code == patient.expected
    return row, right and patient.cause in {None, first.found.cause if first else None}


def _verdicts(found: "Diagnosis") -> str:
    letters = {"ok": "ok", "warning": "W", "error": "E", "unknown": "-"}
    return "" if found.probe is None else " ".join(letters[p.verdict] for p in found.probe.in_order)

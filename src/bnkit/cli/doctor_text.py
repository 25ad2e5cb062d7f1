"""A diagnosis in the terminal: the verdict first, then the causes."""

from collections import Counter
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnkit.doctor.diagnosis import Diagnosis
    from bnkit.doctor.finding import Finding, Impact

MOST, WIDTH = 5, 96


def render(diagnosis: "Diagnosis") -> str:
    """The text that `bnkit doctor` prints.

    Args:
        diagnosis: What was found.

    Returns:
        Lines, with a line break at the end.
    """
    probe = diagnosis.probe
    looked = ""
    if probe is not None:
        looked = f"  (probe: {probe.batches} batch{'' if probe.batches == 1 else 'es'})"
    lines = [f"{diagnosis.verdict}{looked}"]
    for finding in diagnosis.findings[:MOST]:
        lines += _finding(finding, len(diagnosis.records))
    more = len(diagnosis.findings) - MOST
    if more > 0:
        lines.append(f"and {more} more: --format json lists them")
    for finding in diagnosis.suppressed:
        lines.append(f"- {finding.code} {finding.name}: suppressed, {finding.suppressed_by}")
    return "\n".join([*lines, *_not_checked(diagnosis)]) + "\n"


def impact_words(impact: "Impact") -> str:
    """What a fault costs, in words."""
    if impact.metric == "accuracy":
        return (
            f"accuracy {impact.before:.3f} in eval mode, {impact.after:.3f} with batch statistics"
        )
    kind = "KL divergence" if impact.metric == "kl" else "relative difference"
    return f"{kind} {impact.before:.3g} between eval mode and batch statistics"


def _finding(finding: "Finding", total: int) -> list[str]:
    count = len(finding.layers)
    where = f"{count}/{total} layers" if count else "the whole subject"
    if count == 1 or (count and count < total <= 3):
        where = ", ".join(name or "the layer itself" for name in finding.layers)
    mark = finding.severity.label[0].upper()
    head = f"{mark} {finding.code} {finding.name:<22} {where}   {finding.found.certainty}"
    lines = ["", head, *_wrapped(finding.message)]
    if finding.impact is not None:
        lines += _wrapped(f"measured: {impact_words(finding.impact)}")
    if finding.consequences:
        lines += _wrapped(f"explains: {', '.join(finding.consequences)}")
    if finding.fix is not None:
        lines += _wrapped(f"mend: {finding.fix.text}   [{finding.fix.safety}]")
    return [*lines, f"  why: bnkit explain {finding.code}"]


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _not_checked(diagnosis: "Diagnosis") -> list[str]:
    if not diagnosis.skipped:
        return []
    reasons = Counter(s.reason for s in diagnosis.skipped)
    codes = {
        reason: ", ".join(s.code for s in diagnosis.skipped if s.reason == reason)
        for reason in reasons
    }
    lines = ["", f"not checked: {len(diagnosis.skipped)} rules"]
    for reason, count in reasons.most_common():
        lines += wrap(
            f"{count}: {reason} ({codes[reason]})",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    return lines
